-- store.lua: record the outcome of many jobs.
--
-- An outcome is written, published and counted once. Nothing overwrites SUCCESS or REVOKED, and nothing that is not an
-- end overwrites an end. A worker whose lease of the message was lost writes nothing: another worker has the job by now.
--
--- @include constants when_full result
--
-- KEYS  1: the broker's leases, or "" where the broker is another Redis; then three for each job: its result (string and
--       channel), its group's counters (hash), its group's ended jobs (stream); the last two are "" for a job without a
--       group of ours
-- ARGV  1: lifetime of results, seconds (0 = for ever); 2: of a group whose jobs have all ended, and at least that of the
--       record of a job that has; 3: of another group; 4: what stands before a job's id in the key of its record; then five
--       for each job: the result record (JSON that begins with "status", or compressed), 1 if it is the job's end, the
--       counter's name, the job's id, the message's delivery tag ("" = not under a lease)
-- (By position: reading four names from a JSON map takes 3 us, a tenth of the time that one result takes.)
-- Returns {the numbers of the jobs whose outcome was refused, negative for want of a lease}.

local complete_ttl, group_ttl, records = ARGV[2], ARGV[3], ARGV[4]
local leases = KEYS[1]
local refused = {}

-- Which of the messages are under a lease still.
local tags, leased = {}, {}
for i = 9, #ARGV, 5 do
  if ARGV[i] ~= '' then tags[#tags + 1] = ARGV[i] end
end
if leases ~= '' and #tags > 0 then
  for n, ends in ipairs(redis.call('ZMSCORE', leases, unpack(tags))) do
    leased[tags[n]] = ends
  end
end

local function is_leased(tag)
  return leases == '' or tag == '' or leased[tag]
end

local lifetime = tonumber(ARGV[1]) > 0 and { 'EX', ARGV[1] } or {}
local if_first = { 'NX', unpack(lifetime) }

local function store(key, record, options)
  return redis.call('SET', key, record, unpack(options))
end

-- A job's record keeps its id from being run again, so it must not be gone before the result. Where the broker is another
-- Redis, it lives longer from its start (exchange.lua).
local function keep_record(id)
  local left = redis.call('TTL', records .. id)
  if left >= 0 and left < tonumber(complete_ttl) then
    redis.call('EXPIRE', records .. id, complete_ttl)
  end
end

local final = { [SUCCESS] = true, [REVOKED] = true }

local groups = {} -- by the key of a group's counters: what of it has ended just now

local function is_complete(counters)
  local total, ended = nil, 0
  for n, count in ipairs(redis.call('HMGET', counters, 'total', unpack(STATUSES))) do
    -- Only the broker's Redis knows the total, and only of a closed group.
    if n == 1 then total = tonumber(count or -1) else ended = ended + tonumber(count or 0) end
  end
  return total >= 0 and ended >= total
end

local function record_outcome(i)
  local key, counters, stream = KEYS[3 * i - 1], KEYS[3 * i], KEYS[3 * i + 1]
  local record, is_end, counter, id = ARGV[5 * i], ARGV[5 * i + 1], ARGV[5 * i + 2], ARGV[5 * i + 3]
  local has_lease = is_leased(ARGV[5 * i + 4])
  local may_write, before = has_lease, nil
  if may_write and not store(key, record, if_first) then -- nearly always it is the first record
    before = recorded_state(key)
    may_write = not (final[before] or (celery_ended[before] and is_end ~= '1'))
    if may_write then store(key, record, lifetime) end
  end
  if not may_write then
    refused[#refused + 1] = has_lease and i or -i
    return
  end
  redis.call('PUBLISH', key, record)
  if leases ~= '' and is_end == '1' then keep_record(id) end
  if counters ~= '' and is_end == '1' and not celery_ended[before] then
    local group = groups[counters] or { stream = stream, counts = {} }
    group.counts[counter] = (group.counts[counter] or 0) + 1
    groups[counters] = group
    redis.call('XADD', stream, '*', 'id', id)
  end
end

-- Should one record fail, those before it stand, and so must count: alone, in a second attempt, they would be refused.
local all_done, problem = pcall(function()
  for i = 1, (#KEYS - 1) / 3 do record_outcome(i) end
end)
for counters, group in pairs(groups) do
  for counter, count in pairs(group.counts) do
    redis.call('HINCRBY', counters, counter, count)
  end
  local kept_s = is_complete(counters) and complete_ttl or group_ttl
  for _, key in ipairs({ counters, group.stream, counters .. ':jobs' }) do
    redis.call('EXPIRE', key, kept_s)
  end
end
if not all_done then error(problem, 0) end
return refused
