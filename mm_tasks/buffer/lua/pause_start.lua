-- pause_start: no request can succeed now. Pause the project, or one endpoint.
--
-- KEYS[1]  pause     hash: the key or the host is refused, for all lanes
-- KEYS[2]  outage    hash: the endpoint of this lane gives no answer, or refuses every event
-- KEYS[3]  failures  string
-- ARGV[1]  batch_id     of the attempt
-- ARGV[2]  kind         `unauthorized`, `misdirected`, `rejected`, `filtered` or `unavailable`
-- ARGV[3]  status       ARGV[4]  code     shown by `mm-tasks status`
-- ARGV[5]  first_ms     wait before the first probe
-- ARGV[6]  probe_ms     longest wait between probes
-- ARGV[7]  failures_max  so many failures in a row pause; '0' = this one does
--
-- A failed probe doubles the wait, up to probe_ms, and may change the reason. A probe that did not
-- reach the vendor shows nothing about a key or a host, so that reason stays.
-- Only its probe changes an existing pause. A pause of kind `filtered` remembers every refused
-- batch, other kinds the last one.
-- Returns 1 while this lane may not send, 0 otherwise. O(1).

redis.call('HDEL', KEYS[1], 'nothing')
local id, kind, probe_ms = ARGV[1], ARGV[2], tonumber(ARGV[6])
local is_for_all = kind == 'unauthorized' or kind == 'misdirected'
-- The ids of 50 batches: a flush looks at no more of them.
local REFUSED_BYTES_MAX = 50 * 37 - 1
local now_ms = math.floor(now_us() / 1000)
local since_ms = whole(now_ms)

local function write(key, wait_ms, is_new)
  if is_new then redis.call('HSET', key, 'kind', kind, 'status', ARGV[3], 'code', ARGV[4]) end
  wait_ms = math.min(wait_ms, probe_ms)
  redis.call('HDEL', key, 'probe')
  local pause = redis.call('HMGET', key, 'kind', 'refused')
  local refused = id
  if pause[1] == 'filtered' and pause[2] then
    local is_known = string.find(pause[2], id, 1, true)
    refused = is_known and pause[2] or string.sub(pause[2] .. ' ' .. id, -REFUSED_BYTES_MAX)
  end
  redis.call('HSET', key, 'wait_ms', wait_ms, 'probe_at_ms', whole(now_ms + wait_ms),
    'refused', refused)
  redis.call('HSETNX', key, 'since_ms', since_ms)
end

local function again(key)
  local old = redis.call('HMGET', key, 'wait_ms', 'kind')
  local is_other = old[2] ~= kind and kind ~= 'unavailable' and (is_for_all or key == KEYS[2])
  local wait_ms = tonumber(ARGV[5])
  if not is_other then wait_ms = math.max(wait_ms, 2 * tonumber(old[1])) end
  write(key, wait_ms, is_other or old[2] == kind)
end

if redis.call('HGET', KEYS[1], 'probe') == id then
  again(KEYS[1])
  return 1
end
if redis.call('HGET', KEYS[2], 'probe') == id then
  if not is_for_all then
    again(KEYS[2])
    return 1
  end
  -- The endpoint answers: now the key or the host is at fault, since the same time.
  since_ms = redis.call('HGET', KEYS[2], 'since_ms')
  redis.call('DEL', KEYS[2])
end
local key = is_for_all and KEYS[1] or KEYS[2]
if redis.call('EXISTS', key, KEYS[1]) > 0 then return 1 end
if tonumber(ARGV[7]) > 0 and redis.call('INCR', KEYS[3]) < tonumber(ARGV[7]) then return 0 end
redis.call('DEL', KEYS[3])
write(key, tonumber(ARGV[5]), true)
return 1
