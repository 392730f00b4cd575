-- batch_bury: make dead letters of the records that an attempt sent.
--
-- KEYS[1]  records  list
-- KEYS[2]  batch    hash
-- KEYS[3]  claimed  zset
-- KEYS[4]  leases   zset
-- KEYS[5]  counts   hash
-- KEYS[6]  dead     hash
-- KEYS[7]  dead_at  zset
-- KEYS[8]  tallies  hash
-- ARGV[1]  lane
-- ARGV[2]  batch_id
-- ARGV[3]  token
-- ARGV[4]  outcome  to count
-- ARGV[5]  ambiguous kind to count; '' = the outcome was definite
-- ARGV[6]  why      one line of JSON, stored before each record
-- ARGV[7…] increments of histograms: see `tally`
--
-- Returns the number of records buried; 0 when the token is old: then nothing was
-- changed. The rest of the batch can be sent at once. O(n).
-- The id of a dead letter is the lane, the batch's id and a number, with colons between.

local lane, id = ARGV[1], ARGV[2]
local batch = redis.call('HMGET', KEYS[2], 'state', 'token', 'sent')
if batch[1] ~= 'sending' or batch[2] ~= ARGV[3] then return 0 end
redis.call('HDEL', KEYS[2], 'token')
settled(KEYS[5], lane, ARGV[4], ARGV[5])
tally(KEYS[8], ARGV, 7)
return bury_head(KEYS, lane, id, ARGV[6], tonumber(batch[3]), KEYS[6], KEYS[7])
