-- count_dropped: count fields of web requests that were left out of events.
--
-- KEYS[1]  counts  hash
-- ARGV[1]  lane
-- ARGV[2]  n       fields
--
-- Returns 1. O(1). Lost reply: they may be counted.

redis.call('HDEL', KEYS[1], '')
count(KEYS[1], ARGV[1] .. ':left_out', tonumber(ARGV[2]))
return 1
