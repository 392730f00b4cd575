-- dead_recount: count the dead letters by reason again, one stretch of them, if the counts are wrong.
--
-- KEYS[1]  dead     hash
-- KEYS[2]  dead_at  zset
-- KEYS[3]  counts   hash
-- ARGV[1]  length   of the stretch, at most 1000
--
-- Releases before this one buried and removed letters without these counts, so their sum may differ
-- from the number of letters. A recount goes from the oldest to the newest, a stretch with each
-- flush; `dead_recount_ms` is how far it came. Letters of one ms are counted in one step.
-- Returns the number of letters counted. Atomic. O(stretch). Lost reply: the next one continues.

local call, dead, at, counts = redis.call, KEYS[1], KEYS[2], KEYS[3]
local reached_ms = call('HGET', counts, 'dead_recount_ms')
if not reached_ms then
  local by_lane, stale, fields = {}, {''}, call('HGETALL', counts)
  for i = 1, #fields, 2 do
    local lane, reason = string.match(fields[i], '^([^:]+):dead(.*)$')
    if lane then
      local number = tonumber(fields[i + 1])
      by_lane[lane] = (by_lane[lane] or 0) + (reason == '' and number or -number)
      if reason ~= '' then stale[#stale + 1] = fields[i] end
    end
  end
  local is_right = true
  for _, difference in pairs(by_lane) do is_right = is_right and difference == 0 end
  if is_right then return 0 end
  call('HDEL', counts, unpack(stale))
  reached_ms = '-1'
end

local n = tonumber(ARGV[1])
local ids = call('ZRANGE', at, '(' .. reached_ms, '+inf', 'BYSCORE', 'LIMIT', 0, n)
local is_last = #ids < n
if not is_last then
  local upto_ms = call('ZSCORE', at, ids[n])
  if call('ZSCORE', at, ids[1]) == upto_ms then
    ids = call('ZRANGE', at, upto_ms, upto_ms, 'BYSCORE')
  else
    while call('ZSCORE', at, ids[#ids]) == upto_ms do ids[#ids] = nil end
    upto_ms = call('ZSCORE', at, ids[#ids])
  end
  reached_ms = upto_ms
end

local found = {}
for _, id in ipairs(ids) do
  local _, reason = opened(call('HGET', dead, id))
  local field = string.match(id, '^[^:]+') .. ':dead:' .. reason
  found[field] = (found[field] or 0) + 1
end
call('HDEL', counts, 'dead_recount_ms')
for field, number in pairs(found) do count(counts, field, number) end
if not is_last then call('HSET', counts, 'dead_recount_ms', reached_ms) end
return #ids
