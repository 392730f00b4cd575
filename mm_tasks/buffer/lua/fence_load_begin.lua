-- fence_load_begin: begin a load of all fences from SQL, with an empty draft.
--
-- KEYS[1]  fences  hash
-- KEYS[2]  draft   set of tags
-- ARGV[1]  store_id  of the audit store that is about to be read
-- ARGV[2]  token     names this load; a running load with another token ends without effect
-- ARGV[3]  lease_ms  leave the work to another load that renewed its lease within this time;
--                    0 = replace it
-- ARGV[4]  '1' = do nothing if all fences are loaded for this server, '' = load again
--
-- Returns {run_id of this server, known size, known head of the store's log} when the load began;
-- {'loaded', …} or {'loading', …} when there is nothing to do or another load does it; {} when
-- the fence belongs to another audit store. Only the first changes anything. O(1): a draft is
-- freed in the background.
-- Lost reply: begin again, with the same token.

local store = redis.call('HGET', KEYS[1], 'store')
if store and store ~= ARGV[1] then return {} end
local size, head = known_log(KEYS[1])
if ARGV[4] == '1' and is_loaded(KEYS[1]) then return {'loaded', size, head} end
local now_ms = math.floor(now_us() / 1000)
local other = redis.call('HMGET', KEYS[1], 'loading', 'loading_ms')
local is_alive = math.abs(now_ms - (tonumber(other[2]) or 0)) < tonumber(ARGV[3])
if other[1] and other[1] ~= ARGV[2] and is_alive then return {'loading', size, head} end
unlink(KEYS[2])
redis.call('HSET', KEYS[1], 'store', ARGV[1], 'loading', ARGV[2], 'loading_ms', whole(now_ms))
return {run_id(), size, head}
