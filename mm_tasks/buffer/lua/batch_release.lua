-- batch_release: give a batch back, to be sent at a later time.
--
-- KEYS[1]  records  list
-- KEYS[2]  batch    hash
-- KEYS[3]  claimed  zset
-- KEYS[4]  leases   zset
-- KEYS[5]  counts   hash
-- KEYS[6]  tallies  hash
-- ARGV[1]  lane
-- ARGV[2]  batch_id
-- ARGV[3]  token     '' = the batch was never begun
-- ARGV[4]  wait_ms   until it is due
-- ARGV[5]  grace_ms  after it is due, until a flush handles it
-- ARGV[6]  outcome   to count; '' = nothing was sent
-- ARGV[7]  ambiguous kind to count; '' = the outcome was definite
-- ARGV[8…] increments of histograms: see `tally`
--
-- A record sent alone in doubt moves to the end: the next attempt carries another one. Several
-- in doubt count in `doubt`: the second time the batch is sent in halves, then in quarters.
-- Returns 1, or 0 when the token is old: then nothing was changed, and the worker that took
-- the batch over has counted the attempt. So a repeat after a lost reply is safe. O(log n).

local lane, id = ARGV[1], ARGV[2]
local batch = redis.call('HMGET', KEYS[2], 'state', 'token', 'sent', 'suspect')
if not batch[1] or (batch[1] == 'sending') ~= (ARGV[3] ~= '') then return 0 end
if batch[1] == 'sending' and batch[2] ~= ARGV[3] then return 0 end

redis.call('ZREM', KEYS[3], id)
redis.call('HDEL', KEYS[2], 'token')
settled(KEYS[5], lane, ARGV[6], ARGV[7])
tally(KEYS[6], ARGV, 8)
local now_ms = math.floor(now_us() / 1000)
if ARGV[6] == 'unauthorized' or ARGV[6] == 'misdirected' or ARGV[6] == 'rejected' then
  redis.call('HSET', KEYS[2], 'answered', redis.call('HGET', KEYS[2], 'attempt'))
end
local is_alone = batch[3] == '1' and tonumber(batch[4] or 0) == 0
if ARGV[7] ~= '' and not (is_alone and redis.call('LLEN', KEYS[1]) > 1) then
  redis.call('HINCRBY', KEYS[2], 'doubt', 1)
elseif ARGV[7] ~= '' and ARGV[7] ~= 'lease' then
  -- Not after a lease: its worker may still report a success.
  rotate(KEYS[1], KEYS[2])
  -- One by one, all of it came into doubt.
  local sole = redis.call('HINCRBY', KEYS[2], 'sole', 1)
  if sole >= redis.call('LLEN', KEYS[1]) then redis.call('HSETNX', KEYS[2], 'doubt', 1) end
end
local due_ms = now_ms + tonumber(ARGV[4])
redis.call('HSET', KEYS[2], 'state', 'released', 'due_ms', whole(due_ms))
redis.call('ZADD', KEYS[4], whole(due_ms + tonumber(ARGV[5])), id)
return 1
