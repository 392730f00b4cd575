-- purge_fenced_count: return and forget how many records of a subject the fence removed.
--
-- KEYS[1]  caught  hash
-- ARGV[1…] tags of the subject
--
-- Returns the number. O(tags). Lost reply: the number is lost; the records themselves were
-- counted as erased when they were removed.
-- A script, because the fence must not add to a number between its read and its removal.

local n = 0
for _, tag in ipairs(ARGV) do
  n = n + tonumber(redis.call('HGET', KEYS[1], tag) or 0)
  redis.call('HDEL', KEYS[1], tag)
end
return n
