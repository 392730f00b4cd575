-- dead_revive: append dead letters of one lane to its waiting records.
--
-- KEYS[1]  dead     hash
-- KEYS[2]  dead_at  zset
-- KEYS[3]  waiting  list of records, of this lane
-- KEYS[4]  counts   hash
-- KEYS[5]  fence    set of tags
-- KEYS[6]  caught   hash
-- ARGV[1]  lane
-- ARGV[2…] at most 1000 ids of this lane, in the order in which they will wait
--
-- Returns {number waiting now, number erased}; unknown ids count as neither. A record keeps its
-- bytes and so its time of acceptance: a flush does not let it linger again.
-- A record of a fenced subject is removed instead, and counted as erased.
-- Atomic. O(ids). Lost reply: the ids are gone, so a repeat changes nothing.

local call, lane = redis.call, ARGV[1]
local records = take_dead(KEYS[1], KEYS[2], KEYS[4], {unpack(ARGV, 2)})
local is_fenced = fenced(KEYS[5], records, 15)
local kept, gone = {}, {}
for i, record in ipairs(records) do
  local place = is_fenced[i] and gone or kept
  place[#place + 1] = record
end

if #kept > 0 then call('RPUSH', KEYS[3], unpack(kept)) end
-- As append counts them: a comma goes with each record's JSON.
count(KEYS[4], lane .. ':waiting_bytes', bytes_of(kept) - (HEADER - 1) * #kept)
count(KEYS[4], lane .. ':erased', #gone)
count(KEYS[4], 'held_bytes', -bytes_of(gone))
caught(KEYS[6], KEYS[5], gone)
return {#kept, #gone}
