-- fence_load_failed: store the reason why the fences could not be loaded.
--
-- KEYS[1]  fences  hash
-- ARGV[1]  why     a fixed word
--
-- Returns 1, or 0 when the fences are loaded by now: then nothing was changed. O(1).
-- A script, because that check and the writes must be one step.

if is_loaded(KEYS[1]) then return 0 end
redis.call('HDEL', KEYS[1], 'why')
redis.call('HSET', KEYS[1], 'why', ARGV[1])
redis.call('HSETNX', KEYS[1], 'since_ms', whole(math.floor(now_us() / 1000)))
return 1
