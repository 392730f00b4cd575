-- purge_dead: remove a subject's records from one stretch of the dead letters.
--
-- KEYS[1]  dead     hash
-- KEYS[2]  dead_at  zset
-- KEYS[3]  counts   hash
-- ARGV[1]  last     rank of the stretch's last letter, by burial; '' = the newest
-- ARGV[2]  length   of the stretch, at most 1000
-- ARGV[3…] tags of the subject
--
-- Returns {`last` of the next stretch, number removed of track, of identify, of backfill}; the
-- first is -1 after the oldest letter. From the newest to the oldest: see purge_waiting.
-- Atomic. O(stretch). Lost reply: the removed letters were counted; repeat the same stretch.

local call, tags = redis.call, set_of(ARGV, 3)
local last = math.min(call('ZCARD', KEYS[2]) - 1, tonumber(ARGV[1] ~= '' and ARGV[1] or math.huge))
if last < 0 then return {-1, 0, 0, 0} end
local first = math.max(0, last - tonumber(ARGV[2]) + 1)
local ids = call('ZRANGE', KEYS[2], first, last)
local letters = call('HMGET', KEYS[1], unpack(ids))

local removed = {track = 0, identify = 0, backfill = 0}
for i, letter in ipairs(letters) do
  local record = letter and string.sub(letter, string.find(letter, '\n', 1, true) + 1)
  if record and is_of(record, tags) then
    local lane = string.match(ids[i], '^[^:]+')
    call('HDEL', KEYS[1], ids[i])
    call('ZREM', KEYS[2], ids[i])
    removed[lane] = removed[lane] + 1
    count(KEYS[3], lane .. ':dead', -1)
    count(KEYS[3], lane .. ':erased', 1)
    count(KEYS[3], 'held_bytes', -#record)
  end
end
return {first - 1, removed.track, removed.identify, removed.backfill}
