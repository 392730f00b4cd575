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
count(KEYS[3], lane .. ':scheduled', -#records)
let_wait({KEYS[2], KEYS[3], KEYS[4], KEYS[6]}, lane, records)
return #records
