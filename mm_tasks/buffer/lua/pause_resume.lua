-- pause_resume: the probe was answered; end the pause of the project or of this endpoint.
--
-- KEYS[1]  pause     hash, of the project
-- KEYS[2]  outage    hash, of this lane
-- ARGV[1]  batch_id  of the probe
--
-- Returns 1, or 0 when this batch was not the probe: then nothing was changed. O(1).

for _, key in ipairs(KEYS) do
  if redis.call('HGET', key, 'probe') == ARGV[1] then
    redis.call('DEL', key)
    return 1
  end
end
return 0
