-- batch_release: give a batch back, to be sent at a later time.
--
-- KEYS[1]  batch    hash
-- KEYS[2]  claimed  zset
-- KEYS[3]  leases   zset
-- KEYS[4]  counts   hash
-- KEYS[5]  tallies  hash
-- ARGV[1]  lane
-- ARGV[2]  batch_id
-- ARGV[3]  token     '' = the batch was never begun
-- ARGV[4]  wait_ms   until it is due
-- ARGV[5]  grace_ms  after it is due, until a flush handles it
-- ARGV[6]  outcome   to count; '' = nothing was sent
-- ARGV[7]  ambiguous kind to count; '' = the outcome was definite
-- ARGV[8…] increments of histograms: see `tally`
--
-- Returns 1, or 0 when the token is old: then nothing was changed, and the worker that took
-- the batch over has counted the attempt. So a repeat after a lost reply is safe. O(log n).

local lane, id = ARGV[1], ARGV[2]
local batch = redis.call('HMGET', KEYS[1], 'state', 'token')
if not batch[1] or (batch[1] == 'sending') ~= (ARGV[3] ~= '') then return 0 end
if batch[1] == 'sending' and batch[2] ~= ARGV[3] then return 0 end

redis.call('ZREM', KEYS[2], id)
redis.call('HDEL', KEYS[1], 'token')
settled(KEYS[4], lane, ARGV[6], ARGV[7])
tally(KEYS[5], ARGV, 8)
local now_ms = math.floor(now_us() / 1000)
if ARGV[6] == 'unauthorized' or ARGV[6] == 'misdirected' or ARGV[6] == 'rejected' then
  redis.call('HSET', KEYS[1], 'answered', redis.call('HGET', KEYS[1], 'attempt'))
end
local due_ms = now_ms + tonumber(ARGV[4])
redis.call('HSET', KEYS[1], 'state', 'released', 'due_ms', whole(due_ms))
redis.call('ZADD', KEYS[3], whole(due_ms + tonumber(ARGV[5])), id)
return 1
