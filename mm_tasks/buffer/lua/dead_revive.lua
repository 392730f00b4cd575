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

local records = take_dead(KEYS[1], KEYS[2], KEYS[4], {unpack(ARGV, 2)})
return {let_wait({KEYS[3], KEYS[4], KEYS[5], KEYS[6]}, ARGV[1], records)}
