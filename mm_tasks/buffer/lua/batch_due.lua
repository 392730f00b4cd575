-- batch_due: batches a flush should look at: forgotten, due for a retry, or lapsed.
--
-- KEYS[1]  leases   zset
-- ARGV[1]  limit    at most this many
-- ARGV[2]  all      '1' = whatever their score (to find a probe)
--
-- Returns ids, most overdue first. Changes nothing. O(log n + limit).

local to = ARGV[2] == '1' and '+inf' or whole(math.floor(now_us() / 1000))
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', to, 'LIMIT', 0, ARGV[1])
