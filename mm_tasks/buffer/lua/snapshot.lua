-- snapshot: read the state of a project at one instant, for status, metrics and `top`.
--
-- KEYS[1]  counts  hash
-- KEYS[2]  pause   hash
-- KEYS[3]  fence   set
-- KEYS[4]  fences  hash
-- KEYS[5]  rate    string
-- KEYS[6…] of each lane: waiting list, claimed zset, leases zset, throttle string, outage hash
--
-- Returns {Redis's time in µs, the fields of the clock, counts, pause, {tags, 1 if all fences are loaded for this server, reason of a
-- failed load, since_ms}, rate, and of each lane {length of waiting, accepted_ms of its oldest
-- record, size of claimed, of leases, throttle, outage}}; absent values are ''.
-- Changes nothing. O(lanes).

local call = redis.call
local reply = {
  whole(redis_us()),
  call('HGETALL', CLOCK),
  call('HGETALL', KEYS[1]),
  call('HGETALL', KEYS[2]),
  {
    call('SCARD', KEYS[3]),
    is_loaded(KEYS[4]) and 1 or 0,
    call('HGET', KEYS[4], 'why') or '',
    call('HGET', KEYS[4], 'since_ms') or '',
  },
  call('GET', KEYS[5]) or '',
}
for i = 6, #KEYS, 5 do
  local oldest = call('LINDEX', KEYS[i], 0)
  reply[#reply + 1] = {
    call('LLEN', KEYS[i]),
    oldest and string.sub(oldest, 2, 14) or '',
    call('ZCARD', KEYS[i + 1]),
    call('ZCARD', KEYS[i + 2]),
    call('GET', KEYS[i + 3]) or '',
    call('HGETALL', KEYS[i + 4]),
  }
end
return reply
