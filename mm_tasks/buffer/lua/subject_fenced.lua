-- subject_fenced: are these subjects fenced?
--
-- KEYS[1]  fence   set of tags
-- KEYS[2]  fences  hash
-- ARGV[1…] tags of the subjects
--
-- Returns 1 or 0 for each tag; nothing if not all fences are loaded for this server.
-- Changes nothing. O(tags).

if not is_loaded(KEYS[2]) then return {} end
return redis.call('SMISMEMBER', KEYS[1], unpack(ARGV))
