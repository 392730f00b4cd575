-- nudge_ask: ask for a flush or a sweep, unless one is asked for already.
--
-- KEYS[1]  nudges  hash
-- KEYS[2]  signs   hash
-- ARGV[1]  kind    of the queue
--
-- Returns 1 if the caller should publish, otherwise 0.
-- O(1), or O(heartbeats) if the last one did not begin in time. Lost reply: nothing is published,
-- and the next caller publishes a few seconds later.

return ask(now_us(), KEYS[1], KEYS[2], ARGV[1], 0) and 1 or 0
