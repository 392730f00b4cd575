-- snapshot_dead_reasons: count the letters of one stretch of the dead letters by reason.
--
-- KEYS[1]  dead     hash
-- KEYS[2]  dead_at  zset
-- ARGV[1]  first    rank of the stretch's first letter, by burial
-- ARGV[2]  length   of the stretch, at most 1000
--
-- Returns {rank of the next stretch, or -1 at the end, reason, number, reason, number, …}. The
-- reason is a word of the line of JSON before the record, written by `delivery/retry`.
-- Changes nothing. O(stretch).

local first, length = tonumber(ARGV[1]), tonumber(ARGV[2])
local ids = redis.call('ZRANGE', KEYS[2], first, first + length - 1)
if #ids == 0 then return {-1} end
local counts = {}
for _, letter in ipairs(redis.call('HMGET', KEYS[1], unpack(ids))) do
  local why = letter and string.sub(letter, 1, string.find(letter, '\n', 1, true)) or ''
  local reason = string.match(why, '"reason":%s*"([%w_]+)"') or 'unknown'
  counts[reason] = (counts[reason] or 0) + 1
end
local reply = {#ids < length and -1 or first + length}
for reason, number in pairs(counts) do
  reply[#reply + 1] = reason
  reply[#reply + 1] = number
end
return reply
