-- batch_bisect: the vendor refused the sent records of this batch. Find the event at fault.
--
-- KEYS[1]  records   list         KEYS[6]  failures  string
-- KEYS[2]  batch     hash         KEYS[7]  dead      hash
-- KEYS[3]  claimed   zset         KEYS[8]  dead_at   zset
-- KEYS[4]  leases    zset         KEYS[9]  refusals  string
-- KEYS[5]  counts    hash         KEYS[10] tallies   hash
-- ARGV[1]  lane
-- ARGV[2]  batch_id
-- ARGV[3]  token
-- ARGV[4]  why          one line of JSON, stored before a record that is buried
-- ARGV[5]  singles_max  so many events refused alone in a row, and none accepted, mean that
--                       the vendor's rules changed; 0 = no limit
-- ARGV[6…] arguments of `tally`
--
-- If several records were sent, the first half of them is sent next. A record sent alone is
-- buried; then the rest is sent as a whole. Only while nothing of this batch was accepted, the
-- next record is sent alone, so that a vendor that refuses everything is noticed soon.
-- Returns one of
--   'old'         the token is old; nothing was changed
--   'narrowed'    fewer are sent next
--   'buried'      one dead letter; the rest is sent next
--   'systematic'  an event was refused alone and not buried: pause the endpoint
-- Lost reply: the same as a lost message. O(records sent).

local lane, id = ARGV[1], ARGV[2]
local batch = redis.call('HMGET', KEYS[2], 'state', 'token', 'sent', 'refused', 'accepted')
if batch[1] ~= 'sending' or batch[2] ~= ARGV[3] then return 'old' end
local sent, singles_max = tonumber(batch[3]), tonumber(ARGV[5])
redis.call('DEL', KEYS[6])
settled(KEYS[5], lane, 'rejected', '')
tally(KEYS[10], ARGV, 6)
if sent > 1 then
  redis.call('HSET', KEYS[2], 'suspect', sent)
  free(KEYS[2], KEYS[3], KEYS[4], id)
  return 'narrowed'
end

local refused = tonumber(batch[4] or 0) + 1
local in_a_row = redis.call('INCR', KEYS[9])
local is_new_rule = singles_max > 0
  and (in_a_row >= singles_max or (refused >= singles_max and not batch[5]))
if is_new_rule then
  redis.call('DEL', KEYS[9])
  redis.call('HSET', KEYS[2], 'refused', 0, 'suspect', 1)
  free(KEYS[2], KEYS[3], KEYS[4], id)
  return 'systematic'
end
redis.call('HSET', KEYS[2], 'refused', refused)
bury_head(KEYS, lane, id, ARGV[4], 1, KEYS[7], KEYS[8])
if redis.call('EXISTS', KEYS[2]) == 1 then
  redis.call('HSET', KEYS[2], 'suspect', batch[5] and 0 or 1)
end
return 'buried'
