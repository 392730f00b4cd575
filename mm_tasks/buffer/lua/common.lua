-- common: start of every script but append, after base.lua.
--
-- Fields of the hash `counts`, whole numbers:
--   <lane>:accepted <lane>:leased <lane>:delivered <lane>:dead <lane>:erased
--   <lane>:discarded        events; with the length of `waiting` they satisfy
--                           accepted = waiting + leased + delivered + dead + erased + discarded
--   <lane>:suppressed       events refused at append, never accepted
--   <lane>:waiting_bytes    bytes of JSON waiting, one comma for each event included
--   <lane>:ambiguous        requests that may be stored; also by kind: <lane>:ambiguous:<kind>
--   <lane>:outcome:<name>   requests by outcome
--   <lane>:count_differs    answers whose count differs from ours
--   <lane>:left_out         fields dropped from events of web requests: see producer.py
--   held_bytes              bytes of all records held: waiting, in batches, dead
--
-- Fields of the hash `clock`, µs: see `now_us` and `tick`.
--   ahead_us       how far the project's clock is ahead of Redis's
--   seen_us        the latest time of the project's clock that `tick` has stored
--   resumed_us     end of the last gap between two ticks: idle, or Redis's clock stepped forward
--   leapt_us       end of the last gap of more than an hour
--   stepped_at_us  stepped_by_ms   the last step of Redis's clock, for `mm-tasks status`
--
-- At maxmemory Redis refuses a script whose first write allocates, and allows all writes of a
-- script whose first write frees. So each script but append begins with a DEL, HDEL, ZREM or
-- LTRIM, even of nothing.

-- A step that `tick` stores late costs as much time, but each store is a write.
local TICK_US = 200000
-- Of a longer gap nobody knows whether it was as long as Redis's clock says.
local GAP_US = 2000000
local LEAP_US = 3600000000
-- A smaller step is not shown.
local STEP_SHOWN_US = 1000000

local function redis_us()
  local t = redis.call('TIME')
  return t[1] * 1000000 + t[2]
end

local function read_clock()
  local stored = redis.call('HMGET', CLOCK, 'ahead_us', 'seen_us')
  local ahead, seen = tonumber(stored[1] or 0), tonumber(stored[2] or 0)
  return redis_us() + ahead, ahead, seen
end

-- Return the time of the project's clock, which every stored instant is of. It runs as Redis's
-- clock does, but stands still where that goes back.
local function now_us()
  local now, _, seen = read_clock()
  return math.max(now, seen)
end

-- Return `now_us`, and store it, so that a later step back is noticed. Scripts that run often and
-- may write call this instead.
local function tick()
  local now, ahead, seen = read_clock()
  if seen <= now and now < seen + TICK_US then return now end
  redis.call('HDEL', CLOCK, '')
  if now < seen then
    local by = seen - now
    redis.call('HSET', CLOCK, 'ahead_us', whole(ahead + by))
    if by >= STEP_SHOWN_US then
      redis.call('HSET', CLOCK, 'stepped_at_us', whole(seen), 'stepped_by_ms', whole(-by / 1000))
    end
    return seen
  end
  redis.call('HSET', CLOCK, 'seen_us', whole(now))
  if seen > 0 and now > seen + GAP_US then redis.call('HSET', CLOCK, 'resumed_us', whole(now)) end
  if seen > 0 and now > seen + LEAP_US then redis.call('HSET', CLOCK, 'leapt_us', whole(now)) end
  return now
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

-- Move the first record of a batch to the end. A late success must not count for the next one.
local function rotate(records, batch)
  local first = redis.call('LINDEX', records, 0)
  redis.call('LTRIM', records, 1, -1)
  redis.call('RPUSH', records, first)
  redis.call('HINCRBY', batch, 'cut', 1)
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
