-- pause_probe: choose the one batch that may be sent while nothing else is.
--
-- KEYS[1]  pause   hash, of the project
-- KEYS[2]  outage  hash, of this lane; looked at where the project is not paused
-- ARGV[1]  batch_id  '' = only ask
-- ARGV[2]  lost_ms   a probe without an outcome is given up after this time
--
-- Returns {1, refused} when a probe is due ({1, ''} where no batch was refused);
-- with a batch_id it now is the probe and no other is due until its outcome or
-- lost_ms. {0, ''} when none is due, or nothing is stopped. O(1).

local key = redis.call('EXISTS', KEYS[1]) == 1 and KEYS[1] or KEYS[2]
local now_ms = math.floor(now_us() / 1000)
local pause = redis.call('HMGET', key, 'probe_at_ms', 'refused')
if not pause[1] or tonumber(pause[1]) > now_ms then return {0, ''} end
if ARGV[1] ~= '' then
  redis.call('HDEL', key, 'probe')
  redis.call('HSET', key, 'probe', ARGV[1], 'probe_at_ms', whole(now_ms + tonumber(ARGV[2])))
end
return {1, pause[2] or ''}
