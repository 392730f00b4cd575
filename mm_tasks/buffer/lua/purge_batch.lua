-- purge_batch: remove the records of some subjects from a batch that is not being sent.
--
-- KEYS[1]  records  list
-- KEYS[2]  batch    hash
-- KEYS[3]  claimed  zset
-- KEYS[4]  leases   zset
-- KEYS[5]  counts   hash
-- ARGV[1]  lane
-- ARGV[2]  batch_id
-- ARGV[3…] tags of the subjects
--
-- Returns {0, position of a tag, number removed for it, …}: a record of two subjects counts once,
-- see `position_in`. If an attempt that holds such a record is being sent: {ms, position of a tag,
-- 0, …} with the rest of its lease and each tag that it holds; then nothing was changed.
-- An attempt whose lease expired counts as not being sent, and loses its token. Its success may
-- still be recorded; it then counts for the records that it sent and that are still here.
-- Atomic. O(records). Lost reply: the removed records were counted; a repeat finds nothing.

local lane, id, tags = ARGV[1], ARGV[2], positions(ARGV, 3)
local batch = redis.call('HMGET', KEYS[2], 'state', 'sent', 'suspect')
local sent, suspect = tonumber(batch[2] or 0), tonumber(batch[3] or 0)
local kept, gone, sent_kept, suspect_kept = {}, {}, 0, 0
local found, held = {}, {}
for i, record in ipairs(redis.call('LRANGE', KEYS[1], 0, -1)) do
  local position = position_in(tags, record)
  if position then
    gone[#gone + 1] = record
    found[position] = (found[position] or 0) + 1
    held[position] = 0
    held[tags[string.sub(record, 31, 46)] or position] = 0
  else
    kept[#kept + 1] = record
    if i <= sent then sent_kept = sent_kept + 1 end
    if i <= suspect then suspect_kept = suspect_kept + 1 end
  end
end
if #gone == 0 then return {0} end
if batch[1] == 'sending' then
  local left = tonumber(redis.call('ZSCORE', KEYS[4], id) or 0) - math.floor(now_us() / 1000)
  if left > 0 then return add_pairs({left}, held) end
end

redis.call('DEL', KEYS[1])
count(KEYS[5], lane .. ':erased', #gone)
count(KEYS[5], lane .. ':leased', -#gone)
count(KEYS[5], 'held_bytes', -bytes_of(gone))
local reply = add_pairs({0}, found)
if #kept == 0 then
  redis.call('DEL', KEYS[2])
  redis.call('ZREM', KEYS[3], id)
  redis.call('ZREM', KEYS[4], id)
  return reply
end
redis.call('RPUSH', KEYS[1], unpack(kept))
redis.call('HSET', KEYS[2], 'held', bytes_of(kept), 'suspect', suspect_kept)
-- A late success needs no token and still counts. A late refusal must not: it is about more
-- records than are left, and would bury an innocent one.
redis.call('HDEL', KEYS[2], 'token')
if sent_kept > 0 then
  redis.call('HSET', KEYS[2], 'sent', sent_kept)
elseif sent > 0 then
  -- No sent record is left: a late answer is about none of the others.
  redis.call('HINCRBY', KEYS[2], 'cut', 1)
  if batch[1] == 'sending' then free(KEYS[2], KEYS[3], KEYS[4], id) end
end
return reply
