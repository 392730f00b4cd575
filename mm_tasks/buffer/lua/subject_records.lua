-- subject_records: find the records of some subjects in one stretch of a place.
--
-- KEYS[1]  records  list of waiting records or of a batch's, zset of scheduled ones, or hash of
--                   dead letters
-- KEYS[2]  dead_at  zset; only with dead letters
-- ARGV[1]  place    'list', 'scheduled' or 'dead'
-- ARGV[2]  last     of the stretch, as the reply before says; '' = the first stretch
-- ARGV[3]  length   of the stretch, at most RECORDS_MAX; fewer if the records are large
-- ARGV[4…] tags of the subjects
--
-- Returns {`last` of the next stretch, id of a letter or '', its record, …}; the first is '' after
-- the last stretch.
-- A list and the letters are read from the tail and from the newest, as a purge does: see there.
-- Changes nothing. O(stretch).

local call, place, length, tags = redis.call, ARGV[1], tonumber(ARGV[3]), positions(ARGV, 4)
local reply, bytes = {''}, 0
local function look_at(record, id)
  bytes = bytes + #record
  if position_in(tags, record) then
    reply[#reply + 1] = id
    reply[#reply + 1] = record
  end
end

if place == 'scheduled' then
  local stretch = call('ZSCAN', KEYS[1], ARGV[2] == '' and '0' or ARGV[2], 'COUNT', length)
  for i = 1, #stretch[2], 2 do look_at(string.sub(stretch[2][i], SERIAL + 1), '') end
  reply[1] = stretch[1] == '0' and '' or stretch[1]
  return reply
end

local is_list, PAGE = place == 'list', 100
local size = call(is_list and 'LLEN' or 'ZCARD', KEYS[is_list and 1 or 2])
local last = math.min(size - 1, tonumber(ARGV[2] ~= '' and ARGV[2] or math.huge))
local ends = math.max(-1, last - length)
while last > ends and bytes < BYTES_MAX do
  local first = math.max(ends + 1, last - PAGE + 1)
  if is_list then
    for _, record in ipairs(call('LRANGE', KEYS[1], first, last)) do look_at(record, '') end
  else
    local ids = call('ZRANGE', KEYS[2], first, last)
    for i, letter in ipairs(call('HMGET', KEYS[1], unpack(ids))) do
      if letter then look_at(opened(letter), ids[i]) end
    end
  end
  last = first - 1
end
if last >= 0 then reply[1] = whole(last) end
return reply
