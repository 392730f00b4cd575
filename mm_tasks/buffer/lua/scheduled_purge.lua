-- scheduled_purge: remove subjects' records from one stretch of the scheduled records.
--
-- KEYS[1]  scheduled  zset
-- KEYS[2]  counts     hash
-- ARGV[1]  lane
-- ARGV[2]  cursor     of ZSCAN; '0' = the first stretch
-- ARGV[3]  step       about so many records
-- ARGV[4…] tags of the subjects
--
-- Returns {cursor of the next stretch, '0' after the last one; then the position of a tag and the
-- number removed for it, and so on}.
-- ZSCAN returns every record that stays from the first stretch to the last, whatever is stored
-- or moved meanwhile; a rank would shift.
-- Atomic. O(stretch). Lost reply: the removed records were counted; repeat the same stretch.

local call, lane, tags = redis.call, ARGV[1], positions(ARGV, 4)
local stretch = call('ZSCAN', KEYS[1], ARGV[2], 'COUNT', ARGV[3])
local members, gone, removed = {}, {}, {}
for i = 1, #stretch[2], 2 do
  local record = string.sub(stretch[2][i], SERIAL + 1)
  local position = position_in(tags, record)
  if position then
    removed[position] = (removed[position] or 0) + 1
    members[#members + 1] = stretch[2][i]
    gone[#gone + 1] = record
  end
end
if #gone > 0 then
  call('ZREM', KEYS[1], unpack(members))
  count(KEYS[2], lane .. ':scheduled', -#gone)
  count(KEYS[2], lane .. ':erased', #gone)
  count(KEYS[2], 'held_bytes', -bytes_of(gone))
end
return add_pairs({stretch[1]}, removed)
