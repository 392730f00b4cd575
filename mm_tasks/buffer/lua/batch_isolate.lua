-- batch_isolate: another batch passed where this one was refused, so it is this one's fault.
--
-- KEYS[1]  batch  hash
--
-- Returns 1, or 0 when the batch is gone. From now on it is narrowed down where its
-- refusal would have paused the project. O(1).

if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HDEL', KEYS[1], 'refused')
redis.call('HSET', KEYS[1], 'alone', 1)
return 1
