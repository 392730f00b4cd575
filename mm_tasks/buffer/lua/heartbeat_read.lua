-- heartbeat_read: who left a sign of life, and when.
--
-- KEYS[1]  signs  hash
--
-- Returns {now_us, signs}. Changes nothing. O(signs).

return {whole(now_us()), redis.call('HGETALL', KEYS[1])}
