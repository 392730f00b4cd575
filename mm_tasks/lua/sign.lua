-- sign: a worker or a beat says that it is alive.
--
-- KEYS[1]  signs     hash of `<kind>:<name>` to `<ms> <queues>`
-- ARGV[1]  field
-- ARGV[2]  queues    that it serves, commas between; '' for a beat
-- ARGV[3]  kept_ms   older signs are forgotten: those of names that do not come back
--
-- O(signs). Lost reply: it was said, and is said again soon.

local now_ms = math.floor(now_us() / 1000)
redis.call('HDEL', KEYS[1], ARGV[1])
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local at_ms = tonumber(string.match(all[i + 1], '^%d+'))
  if at_ms < now_ms - tonumber(ARGV[3]) then redis.call('HDEL', KEYS[1], all[i]) end
end
redis.call('HSET', KEYS[1], ARGV[1], whole(now_ms) .. ' ' .. ARGV[2])
