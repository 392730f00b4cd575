-- append: store records at the tail of a lane, all or none.
--
-- KEYS[1]  waiting   list of records
-- KEYS[2]  counts    hash
-- KEYS[3]  fence     set of tags
-- KEYS[4]  nudge     string
-- KEYS[5]  imports   hash, only for the rows of an import: then it moves as well
-- ARGV[1]  lane
-- ARGV[2]  buffer_bytes_max  bytes all records of the project may hold
-- ARGV[3]  events_max        events of a full batch
-- ARGV[4]  bytes_max         bytes of a full batch, its brackets taken off
-- ARGV[5]  nudge_ms          no second nudge is asked for within this time
-- With KEYS[5] alone: ARGV[6] field, ARGV[7] what it must hold, '' if there is
-- none, ARGV[8] what it holds then
-- ARGV[6…] or ARGV[9…] at most 1000 records without their first 14 bytes
--
-- Returns 1 if the caller should nudge a flush, otherwise 0. Where subjects are
-- fenced: {the same, positions (from 1) of the records refused…}. Where there is no
-- room: {-1, held_bytes}; where an import stands elsewhere: {-2, where}; then nothing
-- was stored.
-- Atomic. O(records). Lost reply: the records may be stored; of an import, the next
-- call tells.
-- Every web request waits for this one: hence locals, and no call to spare.

local call, counts, lane = redis.call, KEYS[2], ARGV[1]
local first, imports = 6, KEYS[5]
if imports then
  first = 9
  local stands = call('HGET', imports, ARGV[6]) or ''
  if stands ~= ARGV[7] then return {-2, stands} end
end
local is_fenced = call('EXISTS', KEYS[3]) == 1 and fenced(KEYS[3], {unpack(ARGV, first)}, 1)
local t = call('TIME')
local prefix = string.format('1%010d%03d', t[1], math.floor(t[2] / 1000))

local records, refused, held = {}, {}, 0
for i = first, #ARGV do
  if is_fenced and is_fenced[i - first + 1] then
    refused[#refused + 1] = i - first + 1
  else
    local record = prefix .. ARGV[i]
    records[#records + 1] = record
    held = held + #record
  end
end

local n, nudge = #records, 0
if n > 0 then
  local total = call('HINCRBY', counts, 'held_bytes', held)
  if total > tonumber(ARGV[2]) then
    call('HINCRBY', counts, 'held_bytes', -held)
    return {-1, total - held}
  end
  call('HINCRBY', counts, lane .. ':accepted', n)
  -- A record is its header and its JSON; a comma goes with each.
  local bytes = call('HINCRBY', counts, lane .. ':waiting_bytes', held - (HEADER - 1) * n)
  local length = call('RPUSH', KEYS[1], unpack(records))
  local is_full = length >= tonumber(ARGV[3]) or bytes - 1 > tonumber(ARGV[4])
  if is_full and call('SET', KEYS[4], '1', 'NX', 'PX', ARGV[5]) then nudge = 1 end
end
if imports then call('HSET', imports, ARGV[6], ARGV[8]) end
if #refused == 0 then return nudge end
count(counts, lane .. ':suppressed', #refused)
return {nudge, unpack(refused)}
