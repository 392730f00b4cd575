-- scheduled_due: move the records that are due to the waiting records, the longest due first.
--
-- KEYS[1]  scheduled  zset
-- KEYS[2]  waiting    list of records
-- KEYS[3]  counts     hash
-- KEYS[4]  fence      set of tags
-- KEYS[5]  fences     hash
-- KEYS[6]  caught     hash
-- ARGV[1]  lane
-- ARGV[2]  step       at most so many
--
-- Returns how many records left `scheduled`; 0 also while not all fences are loaded.
-- Removes records of fenced subjects and counts them as erased.
-- Atomic. O(step). Lost reply: a repeat moves the next ones.

local call, lane = redis.call, ARGV[1]
local now_ms = whole(math.floor(now_us() / 1000))
local members = call('ZRANGE', KEYS[1], '-inf', now_ms, 'BYSCORE', 'LIMIT', 0, ARGV[2])
if #members == 0 or not is_loaded(KEYS[5]) then return 0 end
call('ZREM', KEYS[1], unpack(members))

local records = {}
for i, member in ipairs(members) do records[i] = string.sub(member, SERIAL + 1) end
local is_fenced = fenced(KEYS[4], records, 15)
local kept, gone = {}, {}
for i, record in ipairs(records) do
  local place = is_fenced[i] and gone or kept
  place[#place + 1] = record
end
if #kept > 0 then call('RPUSH', KEYS[2], unpack(kept)) end
-- As append counts them: a comma goes with each record's JSON.
count(KEYS[3], lane .. ':waiting_bytes', bytes_of(kept) - (HEADER - 1) * #kept)
count(KEYS[3], lane .. ':scheduled', -#records)
count(KEYS[3], lane .. ':erased', #gone)
count(KEYS[3], 'held_bytes', -bytes_of(gone))
caught(KEYS[6], KEYS[4], gone)
return #records
