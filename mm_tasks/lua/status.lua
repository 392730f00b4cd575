-- status: one consistent look at everything people and programs are shown.
--
-- KEYS[1]  counts   hash
-- KEYS[2]  pause    hash
-- KEYS[3]  track waiting     KEYS[4]  identify waiting
-- KEYS[5]  track throttle    KEYS[6]  identify throttle
-- KEYS[7]  track outage      KEYS[8]  identify outage
-- KEYS[9]  fence    set      KEYS[10] fences   hash
-- KEYS[11] backfill waiting; its throttle and its outage are those of track
--
-- Returns {now_us, counts, pause, length and oldest record's accepted_ms of
-- each lane, throttle of each lane, {tags, 1 if all fences are loaded for this
-- server, why they could not be, since_ms}}; absent things are ''. Changes nothing.

local function oldest(key)
  local record = redis.call('LINDEX', key, 0)
  return record and string.sub(record, 2, 14) or ''
end
local stop = {}
for _, key in ipairs({KEYS[2], KEYS[7], KEYS[8]}) do
  if #stop == 0 then stop = redis.call('HGETALL', key) end
end
return {
  whole(now_us()),
  redis.call('HGETALL', KEYS[1]),
  stop,
  {
    redis.call('LLEN', KEYS[3]), oldest(KEYS[3]),
    redis.call('LLEN', KEYS[4]), oldest(KEYS[4]),
    redis.call('LLEN', KEYS[11]), oldest(KEYS[11]),
  },
  {redis.call('GET', KEYS[5]) or '', redis.call('GET', KEYS[6]) or ''},
  {
    redis.call('SCARD', KEYS[9]),
    is_loaded(KEYS[10]) and 1 or 0,
    redis.call('HGET', KEYS[10], 'why') or '',
    redis.call('HGET', KEYS[10], 'since_ms') or '',
  },
}
