-- scheduled_store: store records that become waiting later, all or none.
--
-- KEYS[1]  scheduled  zset
-- KEYS[2]  counts     hash
-- KEYS[3]  fence      set of tags
-- ARGV[1]  lane
-- ARGV[2]  buffer_bytes_max  bytes that all records of the project may hold
-- ARGV[3]  delay_ms          how long from now
-- ARGV[4…] at most 1000 records without their first 14 bytes
--
-- The time in a record's header is the time at which it is due: it did not wait before.
-- Replies as append, and never asks for a nudge. Atomic. O(records).
-- Lost reply: the records may be stored.

local call, counts, lane = redis.call, KEYS[2], ARGV[1]
local is_fenced = fenced(KEYS[3], {unpack(ARGV, 4)}, 1)
local due_ms = math.floor(now_us() / 1000) + tonumber(ARGV[3])
local prefix = string.format('1%013.0f', due_ms)

local records, refused, held = {}, {}, 0
for i = 4, #ARGV do
  if is_fenced[i - 3] then
    refused[#refused + 1] = i - 3
  else
    records[#records + 1] = prefix .. ARGV[i]
    held = held + #prefix + #ARGV[i]
  end
end

if #records > 0 then
  local total = call('HINCRBY', counts, 'held_bytes', held)
  if total > tonumber(ARGV[2]) then
    call('HINCRBY', counts, 'held_bytes', -held)
    return {-1, total - held}
  end
  local serial = call('HINCRBY', counts, lane .. ':accepted', #records) - #records
  call('HINCRBY', counts, lane .. ':scheduled', #records)
  local members = {}
  for i, record in ipairs(records) do
    members[2 * i - 1] = whole(due_ms)
    members[2 * i] = string.format('%0' .. SERIAL .. '.0f', serial + i) .. record
  end
  call('ZADD', KEYS[1], unpack(members))
end
if #refused == 0 then return 0 end
count(counts, lane .. ':suppressed', #refused)
return {0, unpack(refused)}
