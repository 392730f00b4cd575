-- pause_throttle: the vendor answered 429; make all workers wait.
--
-- KEYS[1]  throttle  string `until_us since_ms`
-- KEYS[2]  failures  string: an answer ends a row of failures
-- ARGV[1]  wait_ms
-- ARGV[2]  keep_ms   how long the key outlives the wait, for `rate_reserve`
--
-- A longer wait in force stays. Returns the wait in force (ms).

local now = now_us()
local until_us, since_ms = now + tonumber(ARGV[1]) * 1000, math.floor(now / 1000)
local old = redis.call('GET', KEYS[1])
if old then
  local old_until, old_since = string.match(old, '^(%d+) (%d+)$')
  if tonumber(old_until) > now then since_ms = tonumber(old_since) end
  until_us = math.max(until_us, tonumber(old_until))
end
redis.call('DEL', KEYS[1], KEYS[2])
local left_ms = math.max(1, math.ceil((until_us - now) / 1000))
redis.call('SET', KEYS[1], whole(until_us) .. ' ' .. whole(since_ms),
  'PX', whole(left_ms + tonumber(ARGV[2])))
return left_ms
