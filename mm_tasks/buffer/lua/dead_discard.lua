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

local call, lane = redis.call, ARGV[1]
local n, held = 0, 0
for i = 2, #ARGV do
  local letter = call('HGET', KEYS[1], ARGV[i])
  -- One by one, so that an id passed twice is counted once.
  call('HDEL', KEYS[1], ARGV[i])
  call('ZREM', KEYS[2], ARGV[i])
  if letter then
    n = n + 1
    held = held + #letter - string.find(letter, '\n', 1, true)
  end
end
count(KEYS[3], lane .. ':dead', -n)
count(KEYS[3], lane .. ':discarded', n)
count(KEYS[3], 'held_bytes', -held)
return n
