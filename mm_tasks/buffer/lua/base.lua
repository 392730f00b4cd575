-- base: start of every script. All but append, for which each microsecond counts, go on with
-- common.lua. The layout of a record is in keys.py.

local HEADER = 46
local NO_TAG = string.rep('\0', 16)

-- The clock of the project, see common.lua. `Script` adds it as the last key of every script.
local CLOCK = table.remove(KEYS)

local function redis_us()
  local t = redis.call('TIME')
  return t[1] * 1000000 + t[2]
end

-- Only commands that every producer may run.
local function read_clock()
  local ahead = tonumber(redis.call('HGET', CLOCK, 'ahead_us') or 0)
  local seen = tonumber(redis.call('HGET', CLOCK, 'seen_us') or 0)
  return redis_us() + ahead, ahead, seen
end

-- Return the time of the project's clock, which every stored instant is of. It runs as Redis's
-- clock does, but stands still where that goes back. Within a script it is read once.
local read_us
local function now_us()
  if not read_us then
    local now, _, seen = read_clock()
    read_us = math.max(now, seen)
  end
  return read_us
end

-- '%.0f': a Lua number becomes "1.7e+15" by default and would lose its µs.
local function whole(number)
  return string.format('%.0f', number)
end

local function count(key, field, by)
  if by ~= 0 then redis.call('HINCRBY', key, field, whole(by)) end
end

-- Return a list of booleans, one for each record: is its subject fenced?
-- `offset` is the position of the two tags, 15 in a stored record.
local function fenced(fence, records, offset)
  local result = {}
  if #records == 0 or redis.call('EXISTS', fence) == 0 then return result end
  local tags = {}
  for i, record in ipairs(records) do
    tags[2 * i - 1] = string.sub(record, offset, offset + 15)
    tags[2 * i] = string.sub(record, offset + 16, offset + 31)
  end
  local found = redis.call('SMISMEMBER', fence, unpack(tags))
  for i = 1, #records do
    result[i] = found[2 * i - 1] == 1 or found[2 * i] == 1
  end
  return result
end

-- A flush or a sweep that was asked for is expected to begin within this time if a worker serves
-- its queue. Its message may be lost, or the worker may be of a release that does not say so.
local BEGIN_MS = 3000
-- Otherwise the message waits. It is asked for again after a minute, two, four … and an hour.
local ALONE_MS, ALONE_MAX_MS = 60000, 3600000
-- A live worker has a heartbeat within this time.
local ALIVE_MS = 7000

-- Full batches ask for a flush at most this often: with a backlog every event finds one.
local FULL_MS = 1000

-- Did a live worker serve this kind of queue at this instant or later? A user without the right to
-- HGETALL learns nothing.
local function is_served(signs, kind, at_ms)
  for _, sign in ipairs(redis.pcall('HGETALL', signs)) do
    local ms, queues = string.match(sign, '^(%d+) (.*)$')
    if ms and tonumber(ms) >= at_ms - ALIVE_MS then
      if string.find(queues .. ',', '.' .. kind .. ',', 1, true) then return true end
    end
  end
  return false
end

-- Should the caller publish a flush or a sweep for this kind of queue? Not while one is asked for.
-- An instant in the future does not count.
-- A caller with a `gap_ms` is refused within this time of the last ask, begun or not, and of
-- its last refusal.
local function ask(nudges, signs, kind, gap_ms)
  local now, last = now_us(), kind .. ':last'
  local since_ms = (now - (redis.call('HGET', nudges, last) or 0)) / 1000
  if since_ms >= 0 and since_ms < gap_ms then return false end
  local asked, times = string.match(redis.call('HGET', nudges, kind) or '', '^(%d+) (%d+)$')
  if asked then
    local age_ms = (now - asked) / 1000
    local wait_ms = math.min(ALONE_MS * 2 ^ times, ALONE_MAX_MS)
    if age_ms >= 0 and age_ms < wait_ms then
      if age_ms < BEGIN_MS or not is_served(signs, kind, asked / 1000) then
        if gap_ms > 0 then redis.call('HSET', nudges, last, whole(now)) end
        return false
      end
    end
  end
  redis.call('HDEL', nudges, kind)
  redis.call('HSET', nudges, kind, whole(now) .. ' ' .. (asked and times + 1 or 0), last, whole(now))
  return true
end
