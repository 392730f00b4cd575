-- lift: the probe was answered; the project goes on.
--
-- KEYS[1]  pause     hash
-- ARGV[1]  batch_id  of the probe
--
-- Returns the id of the batch whose refusal paused the project, or '' when this
-- batch was not the probe; then nothing was changed. O(1).

local pause = redis.call('HMGET', KEYS[1], 'probe', 'refused')
if pause[1] ~= ARGV[1] then return '' end
redis.call('DEL', KEYS[1])
return pause[2] or ''
