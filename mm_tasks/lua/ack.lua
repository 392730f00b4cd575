-- ack: the vendor has stored this batch. Forget its records.
--
-- KEYS[1]  records   list
-- KEYS[2]  batch     hash
-- KEYS[3]  claimed   zset
-- KEYS[4]  leases    zset
-- KEYS[5]  counts    hash
-- KEYS[6]  failures  string
-- ARGV[1]  lane
-- ARGV[2]  batch_id
-- ARGV[3]  count_differs  1 if the answer's count was not ours
--
-- No token: a success that comes late removes the batch whoever holds it now.
-- Returns the number of records delivered; 0 when the batch was gone. O(n).

local n = redis.call('LLEN', KEYS[1])
local held = tonumber(redis.call('HGET', KEYS[2], 'held') or 0)
redis.call('DEL', KEYS[6])
if redis.call('DEL', KEYS[2]) == 0 then return 0 end
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[3], ARGV[2])
redis.call('ZREM', KEYS[4], ARGV[2])
count(KEYS[5], ARGV[1] .. ':leased', -n)
count(KEYS[5], ARGV[1] .. ':delivered', n)
count(KEYS[5], 'held_bytes', -held)
settled(KEYS[5], ARGV[1], 'delivered', '')
count(KEYS[5], ARGV[1] .. ':count_differs', tonumber(ARGV[3]))
return n
