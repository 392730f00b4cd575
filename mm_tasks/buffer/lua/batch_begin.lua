-- batch_begin: admit one attempt to send a batch. This is the last check of the fence.
--
-- KEYS[1]  records   list
-- KEYS[2]  batch     hash
-- KEYS[3]  claimed   zset
-- KEYS[4]  leases    zset
-- KEYS[5]  counts    hash
-- KEYS[6]  fence     set of tags
-- KEYS[7]  pause     hash
-- KEYS[8]  throttle  string
-- KEYS[9]  outage    hash
-- KEYS[10] fences    hash
-- KEYS[11] caught    hash
-- KEYS[12] failures  string
-- ARGV[1]  lane
-- ARGV[2]  batch_id
-- ARGV[3]  token     names this attempt
-- ARGV[4]  slot_us   a slot just reserved, '' = the slot of its claim,
--                    'none' = this lane has no limit
-- ARGV[5]  slot_valid_us  how long a slot is valid after its start
-- ARGV[6]  lease_ms
--
-- Returns one of
--   {'gone'}           the batch is finished or buried
--   {'unloaded'}       not all fences are loaded, so nothing may be sent
--   {'held'}           another attempt is sending the batch
--   {'paused'}         the project or the endpoint is paused, and this batch is not the probe
--   {'wait', us}       its slot, its retry or the end of a 429's wait is not yet due
--   {'slot'}           it has no slot, or its slot is over: reserve one
--   {'empty'}          all of its subjects are fenced, so nothing is left to send
--   {'admitted', attempt, attempts in a row without an answer, cut, number of records
--    not sent, kind of the pause that this batch probes or '', records…}
-- Only the last two change anything. O(records).
-- An attempt sends all records; if some at the head are suspect, the first half of those. It sends
-- one record as the probe of a pause, and while the last attempts on the endpoint had no clear
-- outcome: they may be stored, and this one may be too.
-- Lost reply: the batch counts as being sent until the lease expires.

local lane, id = ARGV[1], ARGV[2]
local batch = redis.call('HMGET', KEYS[2], 'state', 'suspect', 'sent', 'doubt')
if not batch[1] then return {'gone'} end
if batch[1] == 'sending' then return {'held'} end
if not is_loaded(KEYS[10]) then return {'unloaded'} end
local now = tick()

local stop = redis.call('EXISTS', KEYS[7]) == 1 and KEYS[7] or KEYS[9]
local pause = redis.call('HMGET', stop, 'kind', 'probe')
if pause[1] and pause[2] ~= id then return {'paused'} end
local throttle = redis.call('GET', KEYS[8])
local open_us = throttle and tonumber(string.match(throttle, '^%d+')) or 0
if now < open_us then return {'wait', math.ceil(open_us - now)} end
local due_us = tonumber(redis.call('HGET', KEYS[2], 'due_ms') or 0) * 1000
if now < due_us then return {'wait', math.ceil(due_us - now)} end

if ARGV[4] ~= 'none' then
  local slot = tonumber(ARGV[4] ~= '' and ARGV[4] or redis.call('ZSCORE', KEYS[3], id) or nil)
  if not slot or now > slot + tonumber(ARGV[5]) then return {'slot'} end
  if now < slot then return {'wait', math.ceil(slot - now)} end
end

redis.call('ZREM', KEYS[3], id)
local records = redis.call('LRANGE', KEYS[1], 0, -1)
local is_fenced = fenced(KEYS[6], records, 15)
local suspect = tonumber(batch[2] or 0)
local kept, gone, suspect_kept = {}, {}, 0
for i, record in ipairs(records) do
  if is_fenced[i] then
    gone[#gone + 1] = record
  else
    kept[#kept + 1] = record
    if i <= suspect then suspect_kept = suspect_kept + 1 end
  end
end
if #gone > 0 then
  redis.call('DEL', KEYS[1])
  if #kept > 0 then redis.call('RPUSH', KEYS[1], unpack(kept)) end
  suspect = suspect_kept
  redis.call('HSET', KEYS[2], 'held', bytes_of(kept), 'suspect', suspect)
  redis.call('HINCRBY', KEYS[2], 'cut', 1)
  count(KEYS[5], lane .. ':erased', #gone)
  count(KEYS[5], lane .. ':leased', -#gone)
  count(KEYS[5], 'held_bytes', -bytes_of(gone))
  caught(KEYS[11], KEYS[6], gone)
end
if #kept == 0 then
  redis.call('DEL', KEYS[1], KEYS[2])
  redis.call('ZREM', KEYS[4], id)
  return {'empty'}
end

local attempt = redis.call('HINCRBY', KEYS[2], 'attempt', 1)
local sent = suspect == 0 and #kept or math.ceil(suspect / 2)
-- A vendor that stores small requests in time and large ones too late would get all of it each time.
sent = math.ceil(sent / 2 ^ math.max(0, tonumber(batch[4] or 0) - 1))
if pause[1] or redis.call('EXISTS', KEYS[12]) == 1 then sent = 1 end
-- After a purge this part may be longer than the part that the previous attempt sent. A late
-- success of that attempt must not count for records that it did not carry.
if batch[3] and sent > tonumber(batch[3]) then redis.call('HINCRBY', KEYS[2], 'cut', 1) end
redis.call('HSET', KEYS[2], 'state', 'sending', 'token', ARGV[3], 'sent', sent)
redis.call('ZADD', KEYS[4], whole(math.floor(now / 1000) + tonumber(ARGV[6])), id)
local more = redis.call('HMGET', KEYS[2], 'cut', 'answered')
local about = {'admitted', attempt, attempt - tonumber(more[2] or 0), more[1], #kept - sent,
  pause[1] or ''}
for i = 1, sent do about[#about + 1] = kept[i] end
return about
