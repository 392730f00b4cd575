-- purge_waiting: remove a subject's records from one stretch of the waiting records.
--
-- KEYS[1]  waiting  list of records
-- KEYS[2]  counts   hash
-- ARGV[1]  lane
-- ARGV[2]  last     index of the stretch's last record, '' = the tail
-- ARGV[3]  length   of the stretch, at most 1000
-- ARGV[4…] tags of the subject
--
-- Returns {number removed, `last` of the next stretch}; the second is -1 after the head.
-- From the tail to the head: a claim meanwhile moves the remaining records towards the head,
-- which is still to come. No record of a fenced subject is appended at the tail.
-- Atomic. O(stretch), and one pass over a part of the list if a record is removed.
-- Lost reply: the removed records were counted; repeat the same stretch.

local call, lane, tags = redis.call, ARGV[1], set_of(ARGV, 4)
call('LTRIM', KEYS[1], 0, -1)
local length = call('LLEN', KEYS[1])
local last = math.min(length - 1, ARGV[2] == '' and length or tonumber(ARGV[2]))
if last < 0 then return {0, -1} end
local first = math.max(0, last - tonumber(ARGV[3]) + 1)

local gone = {}
for i, record in ipairs(call('LRANGE', KEYS[1], first, last)) do
  if is_of(record, tags) then
    gone[#gone + 1] = record
    call('LSET', KEYS[1], first + i - 1, '')
  end
end
if #gone > 0 then
  -- From the end that is nearer.
  call('LREM', KEYS[1], first < length - last and #gone or -#gone, '')
  -- As append counts them: a comma goes with each record's JSON.
  count(KEYS[2], lane .. ':waiting_bytes', (HEADER - 1) * #gone - bytes_of(gone))
  count(KEYS[2], lane .. ':erased', #gone)
  count(KEYS[2], 'held_bytes', -bytes_of(gone))
end
return {#gone, first - 1}
