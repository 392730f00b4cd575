-- fence_load_add: add tags to the draft of a running load, and renew its lease.
--
-- KEYS[1]  fences  hash
-- KEYS[2]  draft   set of tags
-- ARGV[1]  token
-- ARGV[2…] tags, at most 1000
--
-- Returns 1, or 0 when another load replaced this one: then nothing was changed. O(tags).
-- Lost reply: a repeat changes nothing.

if redis.call('HGET', KEYS[1], 'loading') ~= ARGV[1] then return 0 end
redis.call('HDEL', KEYS[1], '')
redis.call('HSET', KEYS[1], 'loading_ms', whole(math.floor(now_us() / 1000)))
redis.call('SADD', KEYS[2], unpack(ARGV, 2))
return 1
