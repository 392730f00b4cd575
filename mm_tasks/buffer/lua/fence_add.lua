-- fence_add: add the tags of a subject to the fence.
--
-- KEYS[1]  fence   set of tags
-- KEYS[2]  fences  hash
-- KEYS[3]  draft   set of tags, of a running load
-- ARGV[1]  store_id  of the audit store that asks for it
-- ARGV[2…] tags, at most 1000
--
-- Returns {known size, known head} of the store's log, or {} when the fence belongs to another
-- audit store: then nothing was changed.
-- The tags go into the draft of a running load too, which may have read SQL before.
-- Atomic. O(tags). Lost reply: they may be in the fence, and a repeat changes nothing.

local store = redis.call('HGET', KEYS[2], 'store')
if store and store ~= ARGV[1] then return {} end
redis.call('HDEL', KEYS[2], '')
redis.call('HSET', KEYS[2], 'store', ARGV[1])
redis.call('SADD', KEYS[1], unpack(ARGV, 2))
if redis.call('HGET', KEYS[2], 'loading') then redis.call('SADD', KEYS[3], unpack(ARGV, 2)) end
return { known_log(KEYS[2]) }
