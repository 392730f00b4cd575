-- load_begin: from now on what SQL says of fences is newer than what is here.
--
-- KEYS[1]  fences  hash
-- KEYS[2]  draft   set of tags
-- ARGV[1]  store_id  of the audit store that is about to be read
-- ARGV[2]  token     names this load; the one before, if it goes on, ends without effect
--
-- Returns {run_id of this server, entries that the store's log had at least}, or {} when the
-- fences here are those of another audit store: then nothing was changed. O(draft).
-- Lost reply: begin again.

local store = redis.call('HGET', KEYS[1], 'store')
if store and store ~= ARGV[1] then return {} end
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[1], 'store', ARGV[1], 'loading', ARGV[2])
return {run_id(), redis.call('HGET', KEYS[1], 'log_size') or '0'}
