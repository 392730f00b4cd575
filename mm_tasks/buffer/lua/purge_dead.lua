-- purge_dead: remove the records of some subjects from one stretch of the dead letters.
--
-- KEYS[1]  dead     hash
-- KEYS[2]  dead_at  zset
-- KEYS[3]  counts   hash
-- ARGV[1]  last     rank of the stretch's last letter, by burial; '' = the newest
-- ARGV[2]  length   of the stretch, at most 1000
-- ARGV[3…] tags of the subjects
--
-- Returns {`last` of the next stretch, lane, position of a tag, number removed for it, …}; the
-- first is -1 after the oldest letter. A record of two subjects counts once: see `position_in`.
-- From the newest to the oldest: see purge_waiting.
-- Atomic. O(stretch). Lost reply: the removed letters were counted; repeat the same stretch.

local call, tags = redis.call, positions(ARGV, 3)
local last = math.min(call('ZCARD', KEYS[2]) - 1, tonumber(ARGV[1] ~= '' and ARGV[1] or math.huge))
if last < 0 then return {-1} end
local first = math.max(0, last - tonumber(ARGV[2]) + 1)
local ids = call('ZRANGE', KEYS[2], first, last)
local letters = call('HMGET', KEYS[1], unpack(ids))

local found, theirs = {}, {}
for i, letter in ipairs(letters) do
  local record = letter and opened(letter)
  local position = record and position_in(tags, record)
  if position then
    local lane = string.match(ids[i], '^[^:]+')
    found[lane] = found[lane] or {}
    found[lane][position] = (found[lane][position] or 0) + 1
    theirs[#theirs + 1] = ids[i]
  end
end
count(KEYS[3], 'held_bytes', -bytes_of(take_dead(KEYS[1], KEYS[2], KEYS[3], theirs)))

local reply = {first - 1}
for lane, numbers in pairs(found) do
  for position, n in pairs(numbers) do
    count(KEYS[3], lane .. ':erased', n)
    for _, value in ipairs({lane, position, n}) do reply[#reply + 1] = value end
  end
end
return reply
