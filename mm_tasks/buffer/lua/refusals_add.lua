-- refusals_add: add the counts of a process to those of the project.
--
-- KEYS[1]  counts  hash
-- ARGV     field and number, of each count
--
-- Returns 0. O(counts), at most ten. Lost reply: the caller adds them again.

redis.call('HDEL', KEYS[1], '')  -- frees nothing, but lets the script write at maxmemory
for i = 1, #ARGV, 2 do count(KEYS[1], ARGV[i], tonumber(ARGV[i + 1])) end
return 0
