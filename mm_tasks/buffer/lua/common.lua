-- common: start of every script. The layout of a record is in keys.py.
--
-- Fields of the hash `counts`, whole numbers:
--   <lane>:accepted <lane>:leased <lane>:delivered <lane>:dead <lane>:erased
--   <lane>:discarded        events; with the length of `waiting` they satisfy
--                           accepted = waiting + leased + delivered + dead + erased + discarded
--   <lane>:suppressed       events refused at append, never accepted
--   <lane>:refused:<reason>  events that calls did not store; of them without an answer of Redis,
--   <lane>:unanswered       so that they may be stored
--   <lane>:waiting_bytes    bytes of JSON waiting, one comma for each event included
--   <lane>:ambiguous        requests that may be stored; also by kind: <lane>:ambiguous:<kind>
--   <lane>:outcome:<name>   requests by outcome
--   <lane>:count_differs    answers whose count differs from ours
--   <lane>:left_out         fields dropped from events of web requests: see producer.py
--   held_bytes              bytes of all records held: waiting, in batches, dead
--
-- At maxmemory Redis refuses a script whose first write allocates, and allows all writes of a
-- script whose first write frees. So each script but append begins with a DEL, HDEL, ZREM or
-- LTRIM, even of nothing.

local HEADER = 46
local NO_TAG = string.rep('\0', 16)

local function now_us()
  local t = redis.call('TIME')
  return t[1] * 1000000 + t[2]
end

-- '%.0f': a Lua number becomes "1.7e+15" by default and would lose its µs.
local function whole(number)
  return string.format('%.0f', number)
end

local function count(key, field, by)
  if by ~= 0 then redis.call('HINCRBY', key, field, whole(by)) end
end

-- Count the outcome of one attempt. `ambiguous` is the kind of doubt, '' if there is none.
local function settled(counts, lane, outcome, ambiguous)
  if outcome ~= '' then count(counts, lane .. ':outcome:' .. outcome, 1) end
  if ambiguous == '' then return end
  count(counts, lane .. ':ambiguous', 1)
  count(counts, lane .. ':ambiguous:' .. ambiguous, 1)
end

-- Add to histograms: argv holds, from `first` on, the field of a bucket, the field of the sum and
-- the increment of the sum, for each histogram. See histograms.py.
local function tally(tallies, argv, first)
  for i = first, #argv, 3 do
    redis.call('HINCRBY', tallies, argv[i], 1)
    redis.call('HINCRBY', tallies, argv[i + 1], argv[i + 2])
  end
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

local function run_id()
  return string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
end

-- Are all fences loaded for this server? After a restart or a failover it has another
-- run_id; after FLUSHALL there is none.
local function is_loaded(fences)
  local loaded_for = redis.call('HGET', fences, 'run_id')
  return loaded_for and loaded_for == run_id()
end

-- Return a lower bound of the entries of the audit log: the larger of the stored and the new one.
local function log_size(fences, new)
  return whole(math.max(tonumber(new), tonumber(redis.call('HGET', fences, 'log_size') or 0)))
end

-- Does a record belong to a subject? `tags` maps each of their tags to true.
local function is_of(record, tags)
  return tags[string.sub(record, 15, 30)] or tags[string.sub(record, 31, 46)]
end

-- Return the arguments from `first` on as keys of a table.
local function set_of(argv, first)
  local set = {}
  for i = first, #argv do set[argv[i]] = true end
  return set
end

-- Count records that the fence removed, by their subject's tag, for the report of the erasure.
local function caught(key, fence, records)
  for _, record in ipairs(records) do
    local tag = string.sub(record, 15, 30)
    if redis.call('SISMEMBER', fence, tag) == 0 then tag = string.sub(record, 31, 46) end
    redis.call('HINCRBY', key, tag, 1)
  end
end

local function bytes_of(records)
  local sum = 0
  for _, record in ipairs(records) do sum = sum + #record end
  return sum
end

-- Give a batch back, due at once.
local function free(batch, claimed, leases, id)
  redis.call('ZREM', claimed, id)
  redis.call('HDEL', batch, 'token', 'due_ms')
  redis.call('HSET', batch, 'state', 'released', 'answered', redis.call('HGET', batch, 'attempt'))
  redis.call('ZADD', leases, whole(math.floor(now_us() / 1000)), id)
end

-- Take the first n records off a batch and return them. The rest is due at once; an empty
-- batch is removed. `keys`: records, batch, claimed, leases.
local function take(keys, id, n)
  local taken = redis.call('LRANGE', keys[1], 0, n - 1)
  redis.call('LTRIM', keys[1], n, -1)
  if redis.call('EXISTS', keys[1]) == 0 then
    redis.call('DEL', keys[2])
    redis.call('ZREM', keys[3], id)
    redis.call('ZREM', keys[4], id)
    return taken
  end
  local suspect = tonumber(redis.call('HGET', keys[2], 'suspect') or 0)
  redis.call('HSET', keys[2], 'suspect', math.max(0, suspect - n))
  redis.call('HINCRBY', keys[2], 'held', -bytes_of(taken))
  redis.call('HINCRBY', keys[2], 'cut', 1)
  free(keys[2], keys[3], keys[4], id)
  return taken
end

-- Make dead letters of the first n records of a batch; return how many. `keys` as for
-- `take`, then counts.
local function bury_head(keys, lane, id, why, n, dead, dead_at)
  local before = tonumber(redis.call('HGET', keys[2], 'buried') or 0)
  local taken = take(keys, id, n)
  local now_ms = whole(math.floor(now_us() / 1000))
  for i, record in ipairs(taken) do
    local letter = lane .. ':' .. id .. ':' .. (before + i)
    redis.call('HSET', dead, letter, why .. '\n' .. record)
    redis.call('ZADD', dead_at, now_ms, letter)
  end
  if redis.call('EXISTS', keys[2]) == 1 then
    redis.call('HSET', keys[2], 'buried', before + #taken)
  end
  count(keys[5], lane .. ':leased', -#taken)
  count(keys[5], lane .. ':dead', #taken)
  return #taken
end
