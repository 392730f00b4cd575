-- purge_waiting: remove the records of some subjects from one stretch of the waiting records.
--
-- KEYS[1]  waiting  list of records
-- KEYS[2]  counts   hash
-- ARGV[1]  lane
-- ARGV[2]  last     index of the stretch's last record, '' = the tail; 'head' = the stretch
--                   begins at the head
-- ARGV[3]  length   of the stretch, at most 1000; fewer if the records are large
-- ARGV[4…] tags of the subjects
--
-- Returns {`last` of the next stretch, position of a tag, number removed for it, …}; the first is
-- -1 after the head. A record of two subjects counts once: see `position_in`.
-- From the tail to the head: a claim meanwhile moves the remaining records towards the head,
-- which is still to come. No record of a fenced subject is appended at the tail.
-- The record at the tail takes the place of a removed one: it was looked at before, or was
-- appended since. So the rest of a long list stays where it is: an LREM would walk over it. At the
-- head the others keep their places instead, so that the oldest waiting record stays in front.
-- Atomic. O(stretch). An LSET walks to its place, so their number is bounded by that work.
-- Lost reply: the removed records were counted; repeat the same stretch.

-- Redis keeps a list in nodes of 8 KB. A step to the next node takes 30 ns.
local NODE_BYTES, NODES_MAX = 8192, 60000

local call, lane, tags = redis.call, ARGV[1], positions(ARGV, 4)
call('LTRIM', KEYS[1], 0, -1)
local length = call('LLEN', KEYS[1])
if length == 0 then return {-1} end
local mean = HEADER + tonumber(call('HGET', KEYS[2], lane .. ':waiting_bytes') or 0) / length
local size = math.min(tonumber(ARGV[3]), math.ceil(BYTES_MAX / mean))
local last = math.min(length, size) - 1
if ARGV[2] ~= 'head' then
  last = math.min(length - 1, ARGV[2] == '' and length or tonumber(ARGV[2]))
end
if last < 0 then return {-1} end
local first = math.max(0, last - size + 1)
local records = call('LRANGE', KEYS[1], first, last)

local found, gone, following = {}, {}, first - 1
local function removed(record, position)
  gone[#gone + 1] = record
  found[position] = (found[position] or 0) + 1
end

if first == 0 then
  local kept = {}
  for _, record in ipairs(records) do
    local position = position_in(tags, record)
    if position then removed(record, position) else kept[#kept + 1] = record end
  end
  if #gone > 0 then
    call('LTRIM', KEYS[1], last + 1, -1)
    if #kept > 0 then call('LPUSH', KEYS[1], unpack(reversed(kept))) end
  end
else
  local nodes = 0
  for i = #records, 1, -1 do
    local position, index = position_in(tags, records[i]), first + i - 1
    if position and nodes > NODES_MAX then
      following = index
      break
    elseif position then
      removed(records[i], position)
      local filler = call('LINDEX', KEYS[1], -1)
      call('LTRIM', KEYS[1], 0, -2)
      length = length - 1
      if index < length then
        call('LSET', KEYS[1], index, filler)
        nodes = nodes + 100 + math.min(index, length - index) * math.min(1, mean / NODE_BYTES)
      end
    end
  end
end

-- As append counts them: a comma goes with each record's JSON.
count(KEYS[2], lane .. ':waiting_bytes', (HEADER - 1) * #gone - bytes_of(gone))
count(KEYS[2], lane .. ':erased', #gone)
count(KEYS[2], 'held_bytes', -bytes_of(gone))
return add_pairs({following}, found)
