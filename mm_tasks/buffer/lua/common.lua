-- common: start of every script but append, after base.lua.
--
-- Fields of the hash `counts`, whole numbers:
--   <lane>:accepted <lane>:scheduled <lane>:leased <lane>:delivered <lane>:dead <lane>:erased
--   <lane>:discarded        events; with the length of `waiting` they satisfy accepted =
--                           scheduled + waiting + leased + delivered + dead + erased + discarded
--   <lane>:suppressed       events refused at append, never accepted
--   <lane>:refused:<reason>  events that calls did not store; of them without an answer of Redis,
--   <lane>:unanswered       so that they may be stored
--   <lane>:waiting_bytes    bytes of JSON waiting, one comma for each event included
--   <lane>:ambiguous        requests that may be stored; also by kind: <lane>:ambiguous:<kind>
--   <lane>:outcome:<name>   requests by outcome
--   <lane>:count_differs    answers whose count differs from ours
--   <lane>:left_out         fields dropped from events of web requests: see producer.py
--   <lane>:dead:<reason>    dead letters by the word of their burial: see `count_dead`
--   dead_recount_ms         present while the letters are counted again: those buried later are
--                           not counted by reason yet
--   foreign_messages        messages of another project that a worker put back
--   unserved_publishes      messages published where no worker of the project listens
--   held_bytes              bytes of all records held: scheduled, waiting, in batches, dead
--
-- Fields of the hash `clock`, µs: see `now_us` and `tick`.
--   ahead_us       how far the project's clock is ahead of Redis's
--   seen_us        the latest time of the project's clock that `tick` has stored
--   resumed_us     end of the last gap between two ticks: idle, or Redis's clock stepped forward
--   leapt_us       end of the last gap of more than an hour
--   stepped_at_us  stepped_by_ms   the last step of Redis's clock, for `mm-tasks status`
--
-- At maxmemory Redis refuses a script whose first write allocates, and allows all writes of a
-- script whose first write frees. So each script but append and scheduled_store begins with a
-- DEL, HDEL, ZREM or LTRIM, even of nothing.

-- A script that goes through a backlog looks at no more than this, and is called again.
local RECORDS_MAX, BYTES_MAX = 2000, 2000000
-- A step that `tick` stores late costs as much time, but each store is a write.
local TICK_US = 200000
-- Of a longer gap nobody knows whether it was as long as Redis's clock says.
local GAP_US = 2000000
local LEAP_US = 3600000000
-- A smaller step is not shown.
local STEP_SHOWN_US = 1000000
-- Digits before each record of `scheduled`: see keys.py.
local SERIAL = 16

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

-- Remove a key and free its values in the background: a set of a million takes half a second. A user
-- of an earlier `users.acl` may not run UNLINK.
local function unlink(key)
  local reply = redis.pcall('UNLINK', key)
  if type(reply) == 'table' then redis.call('DEL', key) end
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

-- Return size and head of the audit log as this Redis knows them: '0' and '' before the first
-- fence. An earlier release stored the size alone.
local function known_log(fences)
  return redis.call('HGET', fences, 'log_size') or '0', redis.call('HGET', fences, 'log_head') or ''
end

-- Move the known size and head forward, for a caller that found `size` and `head` in the log.
-- Nothing changes if others are known by now.
local function advance_log(fences, size, head, new_size, new_head)
  local known_size, known_head = known_log(fences)
  if known_size ~= size or known_head ~= head or tonumber(new_size) < tonumber(size) then return end
  redis.call('HSET', fences, 'log_size', new_size, 'log_head', new_head)
end

-- Return the positions of the tags in the arguments from `first` on, by tag; they begin with 1.
local function positions(argv, first)
  local tags = {}
  for i = first, #argv do tags[argv[i]] = i - first + 1 end
  return tags
end

-- Return the position of the tag that a record counts for, or nil: of its user, then of its visitor.
local function position_in(tags, record)
  return tags[string.sub(record, 15, 30)] or tags[string.sub(record, 31, 46)]
end

-- Append the keys and numbers of a table to a reply.
local function add_pairs(reply, numbers)
  for key, number in pairs(numbers) do
    reply[#reply + 1] = key
    reply[#reply + 1] = number
  end
  return reply
end

-- Count records that the fence removed, by their subject's tag, for the report of the erasure.
local function caught(key, fence, records)
  local is_fenced, found = {}, {}
  for _, record in ipairs(records) do
    local tag = string.sub(record, 15, 30)
    if is_fenced[tag] == nil then is_fenced[tag] = redis.call('SISMEMBER', fence, tag) == 1 end
    if not is_fenced[tag] then tag = string.sub(record, 31, 46) end
    found[tag] = (found[tag] or 0) + 1
  end
  for tag, n in pairs(found) do redis.call('HINCRBY', key, tag, n) end
end

local function bytes_of(records)
  local sum = 0
  for _, record in ipairs(records) do sum = sum + #record end
  return sum
end

-- Append stored records to the waiting ones. Those of fenced subjects are removed instead, and
-- counted as erased. Return the numbers of both. `keys`: waiting, counts, fence, caught.
local function let_wait(keys, lane, records)
  local is_fenced = fenced(keys[3], records, 15)
  local kept, gone = {}, {}
  for i, record in ipairs(records) do
    local place = is_fenced[i] and gone or kept
    place[#place + 1] = record
  end
  if #kept > 0 then redis.call('RPUSH', keys[1], unpack(kept)) end
  -- As append counts them: a comma goes with each record's JSON.
  count(keys[2], lane .. ':waiting_bytes', bytes_of(kept) - (HEADER - 1) * #kept)
  count(keys[2], lane .. ':erased', #gone)
  count(keys[2], 'held_bytes', -bytes_of(gone))
  caught(keys[4], keys[3], gone)
  return #kept, #gone
end

-- Return the values in reverse order: LPUSH of these puts them in front in their own order.
local function reversed(values)
  local result = {}
  for i = #values, 1, -1 do result[#result + 1] = values[i] end
  return result
end

-- Return the record of a dead letter, and the word of its burial.
local function opened(letter)
  local ends = string.find(letter, '\n', 1, true)
  local reason = string.match(string.sub(letter, 1, ends), '"reason":%s*"([%w_]+)"')
  return string.sub(letter, ends + 1), reason or 'unknown'
end

-- Count dead letters that come (by = 1) or go (by = -1), by lane and by reason. `letters` has no
-- text for an unknown id. A recount counts the letters that it has not reached.
-- Called while the letters are in `dead_at`, after the first write.
local function count_dead(counts, dead_at, ids, letters, by)
  local reached_ms = tonumber(redis.call('HGET', counts, 'dead_recount_ms') or nil)
  local found = {}
  for i, id in ipairs(ids) do
    if letters[i] then
      local field = string.match(id, '^[^:]+') .. ':dead'
      found[field] = (found[field] or 0) + by
      if not reached_ms or tonumber(redis.call('ZSCORE', dead_at, id)) <= reached_ms then
        local _, reason = opened(letters[i])
        field = field .. ':' .. reason
        found[field] = (found[field] or 0) + by
      end
    end
  end
  for field, n in pairs(found) do count(counts, field, n) end
end

-- Remove dead letters and return their records, without those of unknown ids.
local function take_dead(dead, dead_at, counts, ids)
  local letters, records = {}, {}
  for i, id in ipairs(ids) do
    -- One by one, so that an id passed twice is taken once.
    letters[i] = redis.call('HGET', dead, id)
    redis.call('HDEL', dead, id)
    if letters[i] then records[#records + 1] = opened(letters[i]) end
  end
  count_dead(counts, dead_at, ids, letters, -1)
  for _, id in ipairs(ids) do redis.call('ZREM', dead_at, id) end
  return records
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
  local ids, letters = {}, {}
  for i, record in ipairs(taken) do
    ids[i], letters[i] = lane .. ':' .. id .. ':' .. (before + i), why .. '\n' .. record
    redis.call('HSET', dead, ids[i], letters[i])
    redis.call('ZADD', dead_at, now_ms, ids[i])
  end
  if redis.call('EXISTS', keys[2]) == 1 then
    redis.call('HSET', keys[2], 'buried', before + #taken)
  end
  count(keys[5], lane .. ':leased', -#taken)
  count_dead(keys[5], dead_at, ids, letters, 1)
  return #taken
end
