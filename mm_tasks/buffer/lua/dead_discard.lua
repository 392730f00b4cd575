-- dead_discard: remove dead letters of one lane for good.
--
-- KEYS[1]  dead     hash
-- KEYS[2]  dead_at  zset
-- KEYS[3]  counts   hash
-- ARGV[1]  lane
-- ARGV[2…] at most 1000 ids of this lane
--
-- Returns the number of letters removed; unknown ids do not count.
-- Atomic. O(ids). Lost reply: the ids are gone, so a repeat changes nothing.

local records = take_dead(KEYS[1], KEYS[2], KEYS[3], {unpack(ARGV, 2)})
count(KEYS[3], ARGV[1] .. ':discarded', #records)
count(KEYS[3], 'held_bytes', -bytes_of(records))
return #records
