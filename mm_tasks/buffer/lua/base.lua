-- base: start of every script. All but append, for which each microsecond counts, go on with
-- common.lua. The layout of a record is in keys.py.

local HEADER = 46
local NO_TAG = string.rep('\0', 16)

-- The clock of the project, see common.lua. `Script` adds it as the last key of every script.
local CLOCK = table.remove(KEYS)
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
