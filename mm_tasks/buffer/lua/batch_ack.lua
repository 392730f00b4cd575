-- batch_ack: remove the records of a batch that the vendor has stored.
--
-- KEYS[1]  records   list
-- KEYS[2]  batch     hash
-- KEYS[3]  claimed   zset
-- KEYS[4]  leases    zset
-- KEYS[5]  counts    hash
-- KEYS[6]  failures  string
-- KEYS[7]  refusals  string
-- KEYS[8]  stray     string: when the last lease of such a request ends, ms
-- KEYS[9]  tallies   hash
-- ARGV[1]  lane
-- ARGV[2]  batch_id
-- ARGV[3]  generation    of the attempt: identifies the records that it sent
-- ARGV[4]  count_differs  1 if the vendor's count differs from ours
-- ARGV[5]  token         of the attempt
-- ARGV[6]  ages          bounds of the histogram of ages, s, commas between
-- ARGV[7…] increments of other histograms: see `tally`
--
-- A late success counts even if another worker holds the batch. If that worker is sending it,
-- its request is then tracked only by the key `stray`, until its lease ends.
-- Returns the number of records delivered. 0 when the batch or its generation is gone; then
-- nothing but failures and refusals changed. O(n).

local lane = ARGV[1]
redis.call('DEL', KEYS[6], KEYS[7])
local batch = redis.call('HMGET', KEYS[2], 'cut', 'sent', 'state', 'token')
if batch[1] ~= ARGV[3] or not batch[2] then return 0 end
if batch[3] == 'sending' and batch[4] ~= ARGV[5] then
  local ends_ms = tonumber(redis.call('ZSCORE', KEYS[4], ARGV[2]) or 0)
  local left_ms = ends_ms - math.floor(now_us() / 1000)
  if left_ms > 0 and ends_ms > tonumber(redis.call('GET', KEYS[8]) or 0) then
    -- Workers of earlier releases look at the expiry alone.
    redis.call('SET', KEYS[8], whole(ends_ms), 'PX', whole(left_ms))
  end
end
local taken = take(KEYS, ARGV[2], tonumber(batch[2]))
if redis.call('EXISTS', KEYS[2]) == 1 then redis.call('HINCRBY', KEYS[2], 'accepted', #taken) end
count(KEYS[5], lane .. ':leased', -#taken)
count(KEYS[5], lane .. ':delivered', #taken)
count(KEYS[5], 'held_bytes', -bytes_of(taken))
settled(KEYS[5], lane, 'delivered', '')
count(KEYS[5], lane .. ':count_differs', tonumber(ARGV[4]))
tally(KEYS[9], ARGV, 7)

-- The age of each event. Events stored together have the same time: find the bucket once.
local bounds, now_ms = {}, math.floor(now_us() / 1000)
for bound in string.gmatch(ARGV[6], '[^,]+') do bounds[#bounds + 1] = bound end
local in_bucket, sum_ms, stamp, age_ms, at = {}, 0, nil, 0, nil
for _, record in ipairs(taken) do
  local accepted_ms = string.sub(record, 2, 14)
  if accepted_ms ~= stamp then
    stamp, age_ms, at = accepted_ms, math.max(0, now_ms - tonumber(accepted_ms)), 'inf'
    for _, bound in ipairs(bounds) do
      if age_ms <= 1000 * tonumber(bound) then
        at = bound
        break
      end
    end
  end
  in_bucket[at] = (in_bucket[at] or 0) + 1
  sum_ms = sum_ms + age_ms
end
for bound, n in pairs(in_bucket) do count(KEYS[9], lane .. ':age_s:' .. bound, n) end
count(KEYS[9], lane .. ':age_s:sum', 1000 * sum_ms)
return #taken
