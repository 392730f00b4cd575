-- batch_readiness: return the next step of a flush of this lane.
--
-- KEYS[1]  waiting   list of records
-- KEYS[2]  claimed   zset
-- KEYS[3]  counts    hash
-- KEYS[4]  pause     hash
-- KEYS[5]  throttle  string
-- KEYS[6]  outage    hash
-- KEYS[7]  fences    hash
-- ARGV[1]  lane
-- ARGV[2]  events_max
-- ARGV[3]  bytes_max    of the body, without its brackets
-- ARGV[4]  linger_ms
-- ARGV[5]  late_us      a claimed batch this long past its slot is late
-- ARGV[6]  claimed_max  as many batches that wait for their slot are late too
--
-- Returns 'unloaded' (not all fences are loaded), 'paused', 'throttled', 'late' (claimed batches
-- are not sent in time), 'ready' (a batch can be claimed) or 'idle'.
-- Changes nothing but the clock. O(log n).

-- First: the clock of the project goes on, whatever else holds.
local now = tick()
if not is_loaded(KEYS[7]) then return 'unloaded' end
if redis.call('EXISTS', KEYS[4], KEYS[6]) > 0 then return 'paused' end
local throttle = redis.call('GET', KEYS[5])
if throttle and tonumber(string.match(throttle, '^%d+')) > now then return 'throttled' end
local first = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
if first[2] and tonumber(first[2]) < now - tonumber(ARGV[5]) then return 'late' end
if redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[6]) then return 'late' end

local oldest = redis.call('LINDEX', KEYS[1], 0)
if not oldest then return 'idle' end
if redis.call('LLEN', KEYS[1]) >= tonumber(ARGV[2]) then return 'ready' end
local bytes = tonumber(redis.call('HGET', KEYS[3], ARGV[1] .. ':waiting_bytes') or 0)
if bytes - 1 > tonumber(ARGV[3]) then return 'ready' end
local age_ms = now / 1000 - tonumber(string.sub(oldest, 2, 14))
-- A record of the future: the clock stepped back while nobody flushed.
return (age_ms >= tonumber(ARGV[4]) or age_ms < 0) and 'ready' or 'idle'
