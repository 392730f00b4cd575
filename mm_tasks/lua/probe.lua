-- probe: choose the one batch that may be sent while the project is paused.
--
-- KEYS[1]  pause   hash
-- ARGV[1]  batch_id  '' = only ask
-- ARGV[2]  lost_ms   a probe without an outcome is given up after this time
--
-- Returns {1, refused} when a probe is due ({1, ''} where no batch was refused);
-- with a batch_id it now is the probe and no other is due until its outcome or
-- lost_ms. {0, ''} when none is due, or the project is not paused. O(1).

local now_ms = math.floor(now_us() / 1000)
local pause = redis.call('HMGET', KEYS[1], 'probe_at_ms', 'refused')
if not pause[1] or tonumber(pause[1]) > now_ms then return {0, ''} end
if ARGV[1] ~= '' then
  redis.call('HDEL', KEYS[1], 'probe')
  redis.call('HSET', KEYS[1], 'probe', ARGV[1], 'probe_at_ms', whole(now_ms + tonumber(ARGV[2])))
end
return {1, pause[2] or ''}
