-- heartbeat_write: store the heartbeat of a worker or a beat, and remove old ones.
--
-- KEYS[1]  signs        hash
-- ARGV[1]  id           `worker:<name>` or `beat:<host>`
-- ARGV[2]  queues       our queues that it serves, with commas between; '' of beat
-- ARGV[3]  kept_ms      heartbeats older than this are removed: of containers that are gone
--
-- Returns nothing. O(1): it looks at a hundred heartbeats, chosen at random. Lost reply: the heartbeat is stored all the same.
-- A script, because it uses Redis's clock and must also work on a server at maxmemory.

local now_ms = math.floor(now_us() / 1000)
-- Begins with a removal, so that a full server accepts the script.
redis.call('HDEL', KEYS[1], ARGV[1])
-- An error is a table without items: a user of an earlier `users.acl` may not run this.
local heartbeats = redis.pcall('HRANDFIELD', KEYS[1], 100, 'WITHVALUES')
for i = 1, #heartbeats, 2 do
  local written_ms = tonumber(string.match(heartbeats[i + 1], '^%d+')) or 0
  if written_ms < now_ms - tonumber(ARGV[3]) then redis.call('HDEL', KEYS[1], heartbeats[i]) end
end
redis.call('HSET', KEYS[1], ARGV[1], whole(now_ms) .. ' ' .. ARGV[2])
