-- fence_add: put up the fence for the tags of a subject, at once and for good.
--
-- KEYS[1]  fence   set of tags
-- KEYS[2]  fences  hash
-- KEYS[3]  draft   set of tags, of a load that goes on
-- ARGV[1]  store_id  of the audit store that says so
-- ARGV[2]  log_size  entries of its log, by which this erasure is in it
-- ARGV[3…] tags, at most 1000
--
-- Returns 1, or 0 when the fences here are those of another audit store: then nothing was
-- changed. A load that goes on may have read SQL before these were there: it has them too.
-- Atomic. O(tags). Lost reply: they may be up, and a repeat changes nothing.

local store = redis.call('HGET', KEYS[2], 'store')
if store and store ~= ARGV[1] then return 0 end
redis.call('HDEL', KEYS[2], '')
redis.call('HSET', KEYS[2], 'store', ARGV[1], 'log_size', log_size(KEYS[2], ARGV[2]))
redis.call('SADD', KEYS[1], unpack(ARGV, 3))
if redis.call('HGET', KEYS[2], 'loading') then redis.call('SADD', KEYS[3], unpack(ARGV, 3)) end
return 1
