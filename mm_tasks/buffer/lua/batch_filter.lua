-- batch_filter: a proxy or filter before the vendor refused the sent records of this batch.
--
-- KEYS[1]  records   list         KEYS[5]  counts   hash
-- KEYS[2]  batch     hash         KEYS[6]  dead     hash
-- KEYS[3]  claimed   zset         KEYS[7]  dead_at  zset
-- KEYS[4]  leases    zset         KEYS[8]  tallies  hash
-- ARGV[1]  lane
-- ARGV[2]  batch_id
-- ARGV[3]  token
-- ARGV[4]  why       one line of JSON, stored before a record that is buried
-- ARGV[5]  is_probe  1 = sent while its endpoint or project is paused
-- ARGV[6]  lanes     of the endpoint, spaces between
-- ARGV[7…] arguments of `tally`
--
-- The body is at fault if the endpoint delivered anything since the batch was refused first: then
-- the batch is bisected, and an event refused alone is buried. Without a delivery nothing is
-- buried. The next request carries one event, each time another one, to find out whether
-- anything passes.
-- Returns one of
--   'old'       the token is old; nothing was changed
--   'narrowed'  fewer are sent next
--   'buried'    one dead letter; the rest is sent next
--   'refused'   nothing is known to pass: count it, and pause after several in a row
--   'again'     as before, but its one event was refused before, and the host is known to be right:
--               do not count it, and send it later
-- Lost reply: the same as a lost message. O(records sent).

local lane, id = ARGV[1], ARGV[2]
local batch = redis.call('HMGET', KEYS[2], 'state', 'token', 'sent', 'passed')
if batch[1] ~= 'sending' or batch[2] ~= ARGV[3] then return 'old' end
local sent, delivered = tonumber(batch[3]), 0
for name in string.gmatch(ARGV[6], '%S+') do
  delivered = delivered + tonumber(redis.call('HGET', KEYS[5], name .. ':delivered') or 0)
end
redis.call('HDEL', KEYS[2], 'token')
settled(KEYS[5], lane, 'filtered', '')
tally(KEYS[8], ARGV, 7)

local others_pass = ARGV[5] ~= '1' and batch[4] and delivered > tonumber(batch[4])
if others_pass and sent == 1 then
  bury_head(KEYS, lane, id, ARGV[4], 1, KEYS[6], KEYS[7])
  if redis.call('EXISTS', KEYS[2]) == 1 then
    redis.call('HSET', KEYS[2], 'suspect', 0, 'passed', whole(delivered))
  end
  return 'buried'
end
if others_pass then
  redis.call('HSET', KEYS[2], 'suspect', sent)
  free(KEYS[2], KEYS[3], KEYS[4], id)
  return 'narrowed'
end

redis.call('HSETNX', KEYS[2], 'passed', whole(delivered))
redis.call('HSET', KEYS[2], 'suspect', 1)
local is_lone = redis.call('LLEN', KEYS[1]) == 1
if sent == 1 and not is_lone then rotate(KEYS[1], KEYS[2]) end
free(KEYS[2], KEYS[3], KEYS[4], id)
local is_known = is_lone and batch[4] and delivered > 0 and ARGV[5] ~= '1'
return is_known and 'again' or 'refused'
