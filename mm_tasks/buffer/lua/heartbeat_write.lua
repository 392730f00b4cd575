-- heartbeat_write: store that something was alive just now, and remove what was not for long.
--
-- KEYS[1]  signs, publishers or projects   hash
-- ARGV[1]  id           of a worker or a beat; of a broker; of a project
-- ARGV[2]  text         stored after the instant: see keys.py
-- ARGV[3]  kept_ms      rows older than this are removed: of containers that are gone
--
-- Returns nothing. O(rows). Lost reply: the row is stored all the same.
-- A script, because it uses Redis's clock and must also work on a server at maxmemory.

local now_ms = math.floor(now_us() / 1000)
-- Begins with a removal, so that a full server accepts the script.
redis.call('HDEL', KEYS[1], ARGV[1])
local heartbeats = redis.call('HGETALL', KEYS[1])
for i = 1, #heartbeats, 2 do
  local written_ms = tonumber(string.match(heartbeats[i + 1], '^%d+')) or 0
  if written_ms < now_ms - tonumber(ARGV[3]) then redis.call('HDEL', KEYS[1], heartbeats[i]) end
end
redis.call('HSET', KEYS[1], ARGV[1], whole(now_ms) .. ' ' .. ARGV[2])
