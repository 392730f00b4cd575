-- fence_load_begin: from now on what SQL says of fences is newer than what is here.
--
-- KEYS[1]  fences  hash
-- KEYS[2]  draft   set of tags
-- ARGV[1]  store_id  of the audit store that is about to be read
-- ARGV[2]  token     names this load; the one before, if it goes on, ends without effect
-- ARGV[3]  lease_ms  another load that gave a sign within this time is left to go on; 0: it is not
-- ARGV[4]  '1' = there is nothing to do where this server is loaded, '' = it is loaded again
--
-- Returns {run_id of this server, entries that the store's log had at least}; {'loaded', …} or
-- {'loading', …} when there is nothing to do, or another does it; {} when the fences here are
-- those of another audit store. But for the first, nothing was changed. O(draft).
-- Lost reply: begin again, with the same token.

local store = redis.call('HGET', KEYS[1], 'store')
if store and store ~= ARGV[1] then return {} end
local log_size = redis.call('HGET', KEYS[1], 'log_size') or '0'
if ARGV[4] == '1' and is_loaded(KEYS[1]) then return {'loaded', log_size} end
local now_ms = math.floor(now_us() / 1000)
local other = redis.call('HMGET', KEYS[1], 'loading', 'loading_ms')
-- A clock may have gone back, by a failover.
local is_alive = math.abs(now_ms - (tonumber(other[2]) or 0)) < tonumber(ARGV[3])
if other[1] and other[1] ~= ARGV[2] and is_alive then return {'loading', log_size} end
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[1], 'store', ARGV[1], 'loading', ARGV[2], 'loading_ms', whole(now_ms))
return {run_id(), log_size}
