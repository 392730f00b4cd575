-- batch_assign_slot: give a slot to a batch that no worker is sending.
--
-- KEYS[1]  batch    hash
-- KEYS[2]  claimed  zset
-- KEYS[3]  leases   zset
-- ARGV[1]  batch_id
-- ARGV[2]  slot_us  '' = now
-- ARGV[3]  found_again_ms  after its slot
--
-- Returns 1, or 0 when the batch is gone or being sent. O(log n).

local state = redis.call('HGET', KEYS[1], 'state')
if not state or state == 'sending' then return 0 end
local slot = ARGV[2] == '' and now_us() or tonumber(ARGV[2])
redis.call('HDEL', KEYS[1], 'due_ms')
redis.call('HSET', KEYS[1], 'state', 'claimed')
redis.call('ZADD', KEYS[2], whole(slot), ARGV[1])
redis.call('ZADD', KEYS[3], whole(math.floor(slot / 1000) + tonumber(ARGV[3])), ARGV[1])
return 1
