-- dead_trim: remove the oldest dead letters, those above a number and those above an age.
--
-- KEYS[1]  dead     hash
-- KEYS[2]  dead_at  zset
-- KEYS[3]  counts   hash
-- ARGV[1]  events_max    letters of all lanes that may stay
-- ARGV[2]  age_max_ms    a letter buried longer ago than this goes
-- ARGV[3]  discards_max  limit of one call; at most 1000
--
-- A letter's age counts only an hour after a leap of the clock: that may have been a mistake.
-- Returns the number of letters removed; discards_max means: call again.
-- Atomic. O(letters removed). Lost reply: they are gone and were counted.

local call = redis.call
local now = now_us()
local is_sure = now > tonumber(call('HGET', CLOCK, 'leapt_us') or 0) + LEAP_US
local oldest_ms = whole(math.floor(now / 1000) - tonumber(ARGV[2]))
local above = call('ZCARD', KEYS[2]) - tonumber(ARGV[1])
local old = is_sure and call('ZCOUNT', KEYS[2], '-inf', '(' .. oldest_ms) or 0
-- Both are counted from the oldest on, so the larger number covers the other.
local n = math.min(math.max(above, old), tonumber(ARGV[3]))
if n <= 0 then return 0 end

local ids = call('ZRANGE', KEYS[2], 0, n - 1)
local records, removed = take_dead(KEYS[1], KEYS[2], KEYS[3], ids), {}
for _, id in ipairs(ids) do
  local lane = string.match(id, '^[^:]+')
  removed[lane] = (removed[lane] or 0) + 1
end
for lane, events in pairs(removed) do count(KEYS[3], lane .. ':discarded', events) end
count(KEYS[3], 'held_bytes', -bytes_of(records))
return n
