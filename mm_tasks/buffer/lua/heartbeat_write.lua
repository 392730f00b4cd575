-- heartbeat_write: note that a worker or a beat is alive now, and forget those of long ago.
--
-- KEYS[1]  signs        hash
-- ARGV[1]  who          `worker:<name>` or `beat:<host>`
-- ARGV[2]  queues       our queues that it serves, with commas between; '' of beat
-- ARGV[3]  kept_ms      signs older than this are forgotten: containers that are no more
--
-- Returns nothing. O(signs). Lost reply: the sign is there all the same.

local now_ms = math.floor(now_us() / 1000)
-- Begins with what frees: also a full server is told who is alive.
redis.call('HDEL', KEYS[1], ARGV[1])
local signs = redis.call('HGETALL', KEYS[1])
for i = 1, #signs, 2 do
  local left_ms = tonumber(string.match(signs[i + 1], '^%d+')) or 0
  if left_ms < now_ms - tonumber(ARGV[3]) then redis.call('HDEL', KEYS[1], signs[i]) end
end
redis.call('HSET', KEYS[1], ARGV[1], whole(now_ms) .. ' ' .. ARGV[2])
