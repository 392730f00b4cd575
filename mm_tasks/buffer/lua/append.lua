-- append: append records to a lane, all or none.
--
-- KEYS[1]  waiting   list of records
-- KEYS[2]  counts    hash
-- KEYS[3]  fence     set of tags
-- KEYS[4]  nudges    hash
-- KEYS[5]  signs     hash
-- KEYS[6]  imports   hash; only for rows of an import, whose position moves as well
-- ARGV[1]  lane
-- ARGV[2]  buffer_bytes_max  bytes that all records of the project may hold
-- ARGV[3]  events_max        events of a full batch
-- ARGV[4]  bytes_max         bytes of a full batch without its brackets
-- ARGV[5]  kind              of the lane's queue; '' of a caller that does not nudge
-- With KEYS[6] only: ARGV[6] field, ARGV[7] its expected value ('' = absent), ARGV[8] its
-- new value
-- ARGV[6…] or ARGV[9…] at most 1000 records without their first 14 bytes
--
-- Returns 1 if the caller should nudge a flush, otherwise 0. If subjects are fenced: {the same,
-- positions (from 1) of the refused records…}. If the buffer is full: {-1, held_bytes}. If the
-- import has another position: {-2, position}. The last two store nothing.
-- Atomic. O(records). Lost reply: the records may be stored; a repeat of an import's step
-- shows whether they are.
-- Every web request waits for this script, hence the locals and as few calls as possible.

local call, counts, lane = redis.call, KEYS[2], ARGV[1]
local first, imports = 6, KEYS[6]
if imports then
  first = 9
  local stands = call('HGET', imports, ARGV[6]) or ''
  if stands ~= ARGV[7] then return {-2, stands} end
end
local is_fenced = call('EXISTS', KEYS[3]) == 1 and fenced(KEYS[3], {unpack(ARGV, first)}, 1)
-- As `now_us`, by commands that every producer may run.
local t, ahead = call('TIME'), call('HGET', CLOCK, 'ahead_us')
local now_us = math.max(t[1] * 1000000 + t[2] + (ahead or 0), call('HGET', CLOCK, 'seen_us') or 0)
local prefix = '1' .. string.format('%013.0f', math.floor(now_us / 1000))

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
  if is_full and ARGV[5] ~= '' and ask(now_us, KEYS[4], KEYS[5], ARGV[5], FULL_MS) then
    nudge = 1
  end
end
if imports then call('HSET', imports, ARGV[6], ARGV[8]) end
if #refused == 0 then return nudge end
count(counts, lane .. ':suppressed', #refused)
return {nudge, unpack(refused)}
