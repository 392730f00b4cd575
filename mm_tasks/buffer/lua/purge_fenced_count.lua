-- purge_fenced_count: take over the number of a subject's records that the fence took out on their way.
--
-- KEYS[1]  caught  hash
-- ARGV[1…] tags of the subject
--
-- Returns the number, which is forgotten here. O(tags). Lost reply: so is the number; the
-- records themselves were counted as erased when they were taken out.

local n = 0
for _, tag in ipairs(ARGV) do
  n = n + tonumber(redis.call('HGET', KEYS[1], tag) or 0)
  redis.call('HDEL', KEYS[1], tag)
end
return n
