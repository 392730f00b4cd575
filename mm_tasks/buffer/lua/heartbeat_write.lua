-- heartbeat_write: store that something was alive just now, and remove what was not for long.
--
-- KEYS[1]  signs, publishers or projects   hash
-- ARGV[1]  id           of a worker or a beat; of a broker; of a project
-- ARGV[2]  text         stored after the instant: see keys.py
-- ARGV[3]  kept_ms      rows older than this are removed: of containers that are gone
-- ARGV[4]  elapsed_ms   since this process wrote its row, by its own clock; '' = the first, or unknown
--
-- Returns nothing. O(1): it looks at a hundred rows, chosen at random. Lost reply: the row is
-- stored all the same.
-- A script, because it uses Redis's clock and must also work on a server at maxmemory.

local now_ms = math.floor(tick() / 1000)
local last_ms = string.match(redis.call('HGET', KEYS[1], ARGV[1]) or '', '^%d+')
-- Begins with a removal, so that a full server accepts the script.
redis.call('HDEL', KEYS[1], ARGV[1])
-- An error is a table without items: a user of an earlier `users.acl` may not run this.
local heartbeats = redis.pcall('HRANDFIELD', KEYS[1], 100, 'WITHVALUES')
for i = 1, #heartbeats, 2 do
  local written_ms = tonumber(string.match(heartbeats[i + 1], '^%d+')) or 0
  if written_ms < now_ms - tonumber(ARGV[3]) then redis.call('HDEL', KEYS[1], heartbeats[i]) end
end
redis.call('HSET', KEYS[1], ARGV[1], whole(now_ms) .. ' ' .. ARGV[2])
-- Redis's clock stepped forward, to `tick` a gap like any other. A slow call is no step.
local by_ms = now_ms - tonumber(last_ms or now_ms) - tonumber(ARGV[4] ~= '' and ARGV[4] or math.huge)
if by_ms > 10000 then
  redis.call('HSET', CLOCK, 'stepped_at_us', whole(1000 * now_ms), 'stepped_by_ms', whole(by_ms))
end
