-- fence_load_commit: replace the fence by the draft, and mark this server as loaded.
--
-- KEYS[1]  fences  hash
-- KEYS[2]  draft   set of tags
-- KEYS[3]  fence   set of tags
-- ARGV[1]  token
-- ARGV[2]  run_id    that fence_load_begin returned; '' = give the load up, so that another
--                    may begin
-- ARGV[3]  size, ARGV[4] head          that fence_load_begin returned
-- ARGV[5]  new_size, ARGV[6] new_head  of the store's log, which has the former: see fence_advance
--
-- Returns 1, or 0 when another load began, or the server lost its data (FLUSHALL, a restart, a
-- failover): then the fence was not changed. The run_id matters because a restart could restore
-- the token without a part of the draft.
-- Atomic. O(1). Lost reply: it may be loaded, and a repeat of the load is safe.

if redis.call('HGET', KEYS[1], 'loading') ~= ARGV[1] then return 0 end
redis.call('HDEL', KEYS[1], 'loading', 'loading_ms')
if run_id() ~= ARGV[2] then
  unlink(KEYS[2])
  return 0
end
redis.call('HDEL', KEYS[1], 'why', 'since_ms')
-- Before the RENAME, which would free a fence of a million tags at once.
unlink(KEYS[3])
if redis.call('EXISTS', KEYS[2]) == 1 then redis.call('RENAME', KEYS[2], KEYS[3]) end
redis.call('HSET', KEYS[1], 'run_id', ARGV[2])
advance_log(KEYS[1], ARGV[3], ARGV[4], ARGV[5], ARGV[6])
return 1
