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
local letters = {}
for i = 2, #ARGV do
  local letter = call('HGET', KEYS[1], ARGV[i])
  -- One by one, so that an id passed twice is revived once.
  call('HDEL', KEYS[1], ARGV[i])
  call('ZREM', KEYS[2], ARGV[i])
  if letter then letters[#letters + 1] = letter end
end

local records = {}
for i, letter in ipairs(letters) do
  records[i] = string.sub(letter, string.find(letter, '\n', 1, true) + 1)
end
local is_fenced = fenced(KEYS[5], records, 15)
local kept, gone = {}, {}
for i, record in ipairs(records) do
  local place = is_fenced[i] and gone or kept
  place[#place + 1] = record
end

if #kept > 0 then call('RPUSH', KEYS[3], unpack(kept)) end
-- As append counts them: a comma goes with each record's JSON.
count(KEYS[4], lane .. ':waiting_bytes', bytes_of(kept) - (HEADER - 1) * #kept)
count(KEYS[4], lane .. ':dead', -#records)
count(KEYS[4], lane .. ':erased', #gone)
count(KEYS[4], 'held_bytes', -bytes_of(gone))
caught(KEYS[6], KEYS[5], gone)
return {#kept, #gone}
