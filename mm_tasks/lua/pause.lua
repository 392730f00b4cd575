-- pause: an attempt showed that sending is of no use now. Stop the project.
--
-- KEYS[1]  pause     hash
-- KEYS[2]  failures  string
-- ARGV[1]  batch_id     of the attempt
-- ARGV[2]  kind         `unauthorized`, `misdirected`, `rejected` or `unavailable`
-- ARGV[3]  status       ARGV[4]  code     as shown to people
-- ARGV[5]  first_ms     wait before the first probe
-- ARGV[6]  probe_ms     longest wait between probes
-- ARGV[7]  failures_max  this many failures in a row pause the project;
--                        '0' = this one does
--
-- A failed probe doubles the wait, up to probe_ms, and may change the reason; one that
-- reached nobody says nothing about a key or a host, so that reason stays.
-- A pause that is there is left alone by all but its probe.
-- Returns 1 while the project is paused, 0 otherwise. O(1).

redis.call('HDEL', KEYS[1], 'nothing')
local now_ms = math.floor(now_us() / 1000)
if redis.call('EXISTS', KEYS[1]) == 1 then
  local old = redis.call('HMGET', KEYS[1], 'probe', 'wait_ms', 'kind')
  if old[1] ~= ARGV[1] then return 1 end
  local wait_ms = tonumber(ARGV[5])
  local is_known = old[3] == ARGV[2] or ARGV[2] == 'unavailable'
  if is_known then wait_ms = math.max(wait_ms, 2 * tonumber(old[2])) end
  wait_ms = math.min(wait_ms, tonumber(ARGV[6]))
  redis.call('HDEL', KEYS[1], 'probe')
  if ARGV[2] ~= 'unavailable' or old[3] == ARGV[2] then
    redis.call('HSET', KEYS[1], 'kind', ARGV[2], 'status', ARGV[3], 'code', ARGV[4])
  end
  redis.call('HSET', KEYS[1], 'wait_ms', wait_ms, 'probe_at_ms', whole(now_ms + wait_ms),
    'refused', ARGV[1])
  return 1
end
if tonumber(ARGV[7]) > 0 and redis.call('INCR', KEYS[2]) < tonumber(ARGV[7]) then return 0 end
redis.call('DEL', KEYS[2])
local wait_ms = math.min(tonumber(ARGV[5]), tonumber(ARGV[6]))
redis.call('HSET', KEYS[1], 'kind', ARGV[2], 'status', ARGV[3], 'code', ARGV[4],
  'since_ms', whole(now_ms), 'wait_ms', wait_ms,
  'probe_at_ms', whole(now_ms + wait_ms), 'refused', ARGV[1])
return 1
