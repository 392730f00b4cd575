-- load_begin: from now on what SQL says of fences is newer than what is here.
--
-- KEYS[1]  fences  hash
-- KEYS[2]  draft   set of tags
-- ARGV[1]  store_id  of the audit store that is about to be read
-- ARGV[2]  token     names this load; the one before, if it goes on, ends without effect
-- ARGV[3]  log_size  entries that the store's log has now
--
-- Returns the run_id of this server; then nothing else. Where nothing was changed: '' when the
-- fences here are those of another audit store, and 'cut' when that log had more entries
-- before: a backup of it was put back, and what it forgot must not be lowered here.
-- O(draft). Lost reply: begin again.

local store = redis.call('HGET', KEYS[1], 'store')
if store and store ~= ARGV[1] then return '' end
local log_size = tonumber(ARGV[3])
if tonumber(redis.call('HGET', KEYS[1], 'log_size') or 0) > log_size then return 'cut' end
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[1], 'store', ARGV[1], 'loading', ARGV[2], 'log_size', whole(log_size))
return run_id()
