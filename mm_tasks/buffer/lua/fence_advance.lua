-- fence_advance: move the known size and head of the audit log forward.
--
-- KEYS[1]  fences  hash
-- ARGV[1]  size      that the caller found in the log, with
-- ARGV[2]  head      the hash of that entry; '' where an earlier release stored the size alone
-- ARGV[3]  new_size  of the log now
-- ARGV[4]  new_head
--
-- Returns {known size, known head}: the new ones, or those that another caller stored meanwhile.
-- Then nothing was changed, and the caller has to look for these in the log.
-- Atomic. O(1). Lost reply: a repeat changes nothing.

redis.call('HDEL', KEYS[1], '')
advance_log(KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4])
return { known_log(KEYS[1]) }
