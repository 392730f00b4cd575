-- rate_reserve: reserve the next free slot of the shared rate if it is near enough (GCRA).
--
-- KEYS[1]  rate      string: end of the last slot (TAT), µs since the epoch
-- KEYS[2]  throttle  string `until_us since_ms`
-- ARGV[1]  interval_us  µs between slots at the sustained rate, rounded up
-- ARGV[2]  burst        slots that may go at once from idle
-- ARGV[3]  max_wait_us  the longest wait of this caller
-- ARGV[4]  now_us       '' = the project's clock, which all workers share; only tests pass a
--                       number
--
-- Returns {wait_us, slot_us}, or {-1, 0} when the wait would exceed max_wait_us; then nothing
-- was reserved.
-- An absent key counts as an empty quota, not as idle: state lost with Redis must not grant a
-- second burst. So does the end of a 429's wait, when the vendor's own bucket is empty, and the
-- end of a gap in which the clock may have stepped forward (`resumed_us`).
-- Callers may have different quotas: together they keep the largest rate and burst. A state is
-- impossible only if it is further ahead than any quota and flush interval explain.
-- Atomic. O(1). Lost reply: the slot is spent; this errs towards sending less.

local interval, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local max_wait = tonumber(ARGV[3])
local now = ARGV[4] == '' and tick() or tonumber(ARGV[4])
local AHEAD_MAX_US = 900000000
local tolerance = (burst - 1) * interval
local used_up = now + tolerance + interval

local tat = tonumber(redis.call('GET', KEYS[1]) or nil) or used_up
if tat > now + max_wait + tolerance + interval + AHEAD_MAX_US then tat = used_up end
local resumed = tonumber(redis.call('HGET', CLOCK, 'resumed_us') or 0)
tat = math.max(tat, resumed + tolerance + interval)
local throttle = redis.call('GET', KEYS[2])
if throttle then
  tat = math.max(tat, tonumber(string.match(throttle, '^%d+')) + tolerance)
end

local slot = math.max(now, tat - tolerance)
if slot - now > max_wait then
  -- Store an absent or impossible state, or it would stay so for ever.
  if tat == used_up then
    redis.call('DEL', KEYS[1])
    redis.call('SET', KEYS[1], whole(tat))
  end
  return {-1, 0}
end
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], whole(math.max(slot, tat) + interval))
return {slot - now, slot}
