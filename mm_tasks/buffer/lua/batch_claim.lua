-- batch_claim: make a batch of the oldest records, as many as one request may carry.
--
-- KEYS[1]  waiting   list of records
-- KEYS[2]  records   list, made here
-- KEYS[3]  batch     hash, made here
-- KEYS[4]  claimed   zset
-- KEYS[5]  leases    zset
-- KEYS[6]  counts    hash
-- KEYS[7]  fence     set of tags
-- KEYS[8]  fences    hash
-- KEYS[9]  caught    hash
-- ARGV[1]  lane
-- ARGV[2]  events_max
-- ARGV[3]  bytes_max    of the body, without its brackets; commas count
-- ARGV[4]  batch_id     chosen by the caller, never used before
-- ARGV[5]  linger_ms    a part-full batch is ready when its oldest record is this old
-- ARGV[6]  slot_us      when it may be sent, '' = now
-- ARGV[7]  found_again_ms  after its slot; then a flush counts it as forgotten
--
-- Returns the number of records claimed; 0 when no batch is ready, or not all fences
-- are loaded; -1 after so many records of fenced subjects that it must be called again.
-- Removes records of fenced subjects and counts them as erased.
-- Atomic. Looks at no more than RECORDS_MAX records. Lost reply: a flush finds the batch by its
-- lease.

if not is_loaded(KEYS[8]) then return 0 end
local lane, id = ARGV[1], ARGV[4]
local events_max, bytes_max = tonumber(ARGV[2]), tonumber(ARGV[3])
local now = now_us()
local PAGE = 100

local kept, gone, body, taken, body_gone = {}, {}, 0, 0, 0
local oldest_ms, is_full, is_cut = nil, false, false
repeat
  local page = redis.call('LRANGE', KEYS[1], taken, taken + PAGE - 1)
  local is_fenced = fenced(KEYS[7], page, 15)
  for i, record in ipairs(page) do
    local size = #record - HEADER
    if is_fenced[i] then
      gone[#gone + 1] = record
    else
      local cost = size + (#kept > 0 and 1 or 0)
      if #kept >= events_max or body + cost > bytes_max then
        is_full = true
        break
      end
      kept[#kept + 1] = record
      body = body + cost
      oldest_ms = oldest_ms or tonumber(string.sub(record, 2, 14))
    end
    taken = taken + 1
    body_gone = body_gone + size + 1
  end
  is_cut = taken >= RECORDS_MAX or body_gone >= BYTES_MAX
until is_full or is_cut or #page < PAGE

is_full = is_full or #kept >= events_max
is_cut = is_cut and not is_full
local age_ms = oldest_ms and now / 1000 - oldest_ms
-- A record of the future: see batch_readiness.
local is_ready = is_full or (age_ms and (age_ms >= tonumber(ARGV[5]) or age_ms < 0))
is_ready = is_ready and not is_cut
if not is_ready and #gone == 0 then return 0 end
redis.call('LTRIM', KEYS[1], taken, -1)
if not is_ready then
  -- Only the erased records leave. The others go back to the head, in order.
  if #kept > 0 then redis.call('LPUSH', KEYS[1], unpack(reversed(kept))) end
  for _, record in ipairs(kept) do body_gone = body_gone - (#record - HEADER + 1) end
  kept = {}
end

count(KEYS[6], lane .. ':waiting_bytes', -body_gone)
count(KEYS[6], lane .. ':erased', #gone)
count(KEYS[6], 'held_bytes', -bytes_of(gone))
caught(KEYS[9], KEYS[7], gone)
if #kept == 0 then return is_cut and -1 or 0 end

local slot = ARGV[6] == '' and now or tonumber(ARGV[6])
redis.call('RPUSH', KEYS[2], unpack(kept))
redis.call('HSET', KEYS[3], 'state', 'claimed', 'attempt', 0, 'cut', 0, 'held', bytes_of(kept))
redis.call('ZADD', KEYS[4], whole(slot), id)
redis.call('ZADD', KEYS[5], whole(math.floor(slot / 1000) + tonumber(ARGV[7])), id)
count(KEYS[6], lane .. ':leased', #kept)
return #kept
