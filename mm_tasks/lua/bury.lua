-- bury: set the records of a batch aside as dead letters, for a person.
--
-- KEYS[1]  records  list
-- KEYS[2]  batch    hash
-- KEYS[3]  claimed  zset
-- KEYS[4]  leases   zset
-- KEYS[5]  counts   hash
-- KEYS[6]  dead     hash
-- KEYS[7]  dead_at  zset
-- KEYS[8]  failures  string, ended by an answer that leaves no doubt
-- ARGV[1]  lane
-- ARGV[2]  batch_id
-- ARGV[3]  token
-- ARGV[4]  outcome  counted
-- ARGV[5]  ambiguous kind, counted; '' = it was not
-- ARGV[6]  why      one line of JSON, stored before each record
--
-- Returns the number of records buried; 0 when the token is old. O(n).
-- The id of a dead letter is the batch's, a colon, and its position from 1.

local lane, id = ARGV[1], ARGV[2]
local batch = redis.call('HMGET', KEYS[2], 'state', 'token')
if batch[1] ~= 'sending' or batch[2] ~= ARGV[3] then return 0 end

local records = redis.call('LRANGE', KEYS[1], 0, -1)
local now_ms = whole(math.floor(now_us() / 1000))
redis.call('DEL', KEYS[1], KEYS[2])
if ARGV[5] == '' then redis.call('DEL', KEYS[8]) end
redis.call('ZREM', KEYS[3], id)
redis.call('ZREM', KEYS[4], id)
settled(KEYS[5], lane, ARGV[4], ARGV[5])
for i, record in ipairs(records) do
  redis.call('HSET', KEYS[6], id .. ':' .. i, ARGV[6] .. '\n' .. record)
  redis.call('ZADD', KEYS[7], now_ms, id .. ':' .. i)
end
count(KEYS[5], lane .. ':leased', -#records)
count(KEYS[5], lane .. ':dead', #records)
return #records
