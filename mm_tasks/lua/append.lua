-- append: store records at the tail of a lane, all or none.
--
-- KEYS[1]  waiting   list of records
-- KEYS[2]  counts    hash
-- KEYS[3]  fence     set of tags
-- KEYS[4]  nudge     string
-- ARGV[1]  lane
-- ARGV[2]  buffer_bytes_max  bytes all records of the project may hold
-- ARGV[3]  events_max        events of a full batch
-- ARGV[4]  bytes_max         bytes of a full batch, its brackets taken off
-- ARGV[5]  nudge_ms          no second nudge is asked for within this time
-- ARGV[6…] at most 1000 records without their first 14 bytes
--
-- Returns {1 if the caller should nudge a flush, positions (from 1) of records
-- refused because their subject is fenced…}, or {-1, held_bytes} when there is
-- no room; then nothing was stored.
-- Atomic. O(records). Lost reply: the records may be stored.

local lane = ARGV[1]
local prefix = '1' .. string.format('%013.0f', math.floor(now_us() / 1000))
local given = {}
for i = 6, #ARGV do given[i - 5] = ARGV[i] end

local is_fenced = fenced(KEYS[3], given, 1)
local reply = {0}
local records = {}
local held, body = 0, 0
for i, record in ipairs(given) do
  if is_fenced[i] then
    reply[#reply + 1] = i
  else
    records[#records + 1] = prefix .. record
    held = held + #record + 14
    body = body + #record - 31
  end
end

local before = tonumber(redis.call('HGET', KEYS[2], 'held_bytes') or 0)
if #records > 0 and before + held > tonumber(ARGV[2]) then return {-1, before} end

count(KEYS[2], lane .. ':suppressed', #reply - 1)
if #records == 0 then return reply end
local length = redis.call('RPUSH', KEYS[1], unpack(records))
redis.call('HINCRBY', KEYS[2], lane .. ':accepted', #records)
redis.call('HINCRBY', KEYS[2], 'held_bytes', held)
local bytes = redis.call('HINCRBY', KEYS[2], lane .. ':waiting_bytes', body)

if length >= tonumber(ARGV[3]) or bytes - 1 > tonumber(ARGV[4]) then
  if redis.call('SET', KEYS[4], '1', 'NX', 'PX', ARGV[5]) then reply[1] = 1 end
end
return reply
