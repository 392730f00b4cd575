-- pause_probe_now: a person wants the vendor to be called; let the next probe be due at once.
--
-- KEYS[1]  pause  hash, of the project
--
-- Returns 1, or 0 if the project is not paused. A probe under way stays the probe until another one
-- begins. O(1). Lost reply: safe to repeat.

if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'probe_at_ms', '0')
return 1
