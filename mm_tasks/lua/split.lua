-- split: a refused batch becomes two, each half of it, both due at once.
--
-- KEYS[1]  records   list           KEYS[6]  records of the first half
-- KEYS[2]  batch     hash           KEYS[7]  batch of the first half
-- KEYS[3]  claimed   zset           KEYS[8]  records of the second half
-- KEYS[4]  leases    zset           KEYS[9]  batch of the second half
-- KEYS[5]  counts    hash           KEYS[10]  failures  string
-- ARGV[1]  lane
-- ARGV[2]  batch_id
-- ARGV[3]  token
-- ARGV[4]  id of the first half     ARGV[5]  id of the second half
--
-- Returns 1, or 0 when the token is old. A batch of one cannot be split. O(n).
-- Lost reply: the halves are found by their leases.

local batch = redis.call('HMGET', KEYS[2], 'state', 'token')
if batch[1] ~= 'sending' or batch[2] ~= ARGV[3] then return 0 end
local records = redis.call('LRANGE', KEYS[1], 0, -1)
if #records < 2 then return redis.error_reply('a batch of one cannot be split') end

local now_ms = whole(math.floor(now_us() / 1000))
redis.call('DEL', KEYS[1], KEYS[2], KEYS[10])
redis.call('ZREM', KEYS[3], ARGV[2])
redis.call('ZREM', KEYS[4], ARGV[2])
settled(KEYS[5], ARGV[1], 'rejected', '')
local middle = math.floor(#records / 2)
for half = 0, 1 do
  local part = {unpack(records, half == 0 and 1 or middle + 1, half == 0 and middle or #records)}
  redis.call('RPUSH', KEYS[6 + 2 * half], unpack(part))
  redis.call('HSET', KEYS[7 + 2 * half],
    'state', 'released', 'attempt', 0, 'due_ms', now_ms, 'held', bytes_of(part))
  redis.call('ZADD', KEYS[4], now_ms, ARGV[4 + half])
end
return 1
