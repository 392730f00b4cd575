-- batch_take_over: take over a batch whose lease expired while it was being sent.
--
-- KEYS[1]  batch   hash
-- KEYS[2]  leases  zset
-- ARGV[1]  batch_id
-- ARGV[2]  token     of the new holder, which settles the attempt as ambiguous
-- ARGV[3]  lease_ms
--
-- Returns {attempt, attempts since the last definite answer, generation, sent} of the expired
-- attempt; {} when its lease did not expire, its outcome was recorded, or another worker took
-- it over first. O(log n).
-- Lost reply: a flush finds it again after lease_ms.

if redis.call('HGET', KEYS[1], 'state') ~= 'sending' then return {} end
local now_ms = math.floor(now_us() / 1000)
local expiry = redis.call('ZSCORE', KEYS[2], ARGV[1])
if expiry and tonumber(expiry) > now_ms then return {} end
redis.call('HDEL', KEYS[1], 'token')
redis.call('HSET', KEYS[1], 'token', ARGV[2])
redis.call('ZADD', KEYS[2], whole(now_ms + tonumber(ARGV[3])), ARGV[1])
local about = redis.call('HMGET', KEYS[1], 'attempt', 'answered', 'cut', 'sent')
about[2] = whole(tonumber(about[1]) - tonumber(about[2] or 0))
return about
