-- pause_resume: the probe was answered; the project, or this lane, goes on.
--
-- KEYS[1]  pause     hash, of the project
-- KEYS[2]  outage    hash, of this lane
-- ARGV[1]  batch_id  of the probe
--
-- Returns the id of the batch whose refusal stopped it, or '' when this batch was
-- not the probe; then nothing was changed. O(1).

for _, key in ipairs(KEYS) do
  local pause = redis.call('HMGET', key, 'probe', 'refused')
  if pause[1] == ARGV[1] then
    redis.call('DEL', key)
    return pause[2] or ''
  end
end
return ''
