-- pause_probe: choose the only batch that may be sent during a pause.
--
-- KEYS[1]  pause   hash, of the project
-- KEYS[2]  outage  hash, of this lane; read if the project is not paused
-- ARGV[1]  batch_id  '' = only read
-- ARGV[2]  lost_ms   a probe without an outcome expires after this time
--
-- Returns {1, ids} when a probe is due: the refused batches, spaces between. With a batch_id
-- that batch is the probe now, and no other is due until its outcome or lost_ms. {0, ''} when
-- no probe is due or nothing is paused. O(1).

local key = redis.call('EXISTS', KEYS[1]) == 1 and KEYS[1] or KEYS[2]
local now_ms = math.floor(now_us() / 1000)
local pause = redis.call('HMGET', key, 'probe_at_ms', 'refused')
if not pause[1] or tonumber(pause[1]) > now_ms then return {0, ''} end
if ARGV[1] ~= '' then
  redis.call('HDEL', key, 'probe')
  redis.call('HSET', key, 'probe', ARGV[1], 'probe_at_ms', whole(now_ms + tonumber(ARGV[2])))
end
return {1, pause[2] or ''}
