-- results.lua: record the outcome of many jobs.
--
-- An outcome is written, published and counted once. SUCCESS is never overwritten, and nothing that is not an end
-- overwrites an end: a worker that comes late, after another finished its job, changes nothing.
--
-- KEYS  three for each job: its result (string and channel), its group's counters (hash), its group's ended jobs
--       (stream); the last two are "" for a job without a group of ours
-- ARGV  1: lifetime of results, seconds (0 = for ever); 2: lifetime of group keys, seconds;
--       then four for each job: the result record (JSON that begins with "status"), 1 if it is the job's end,
--       the counter's name, the job's id
-- Returns the number of results written.

-- A first write that needs no memory lets the rest pass on a Redis that is full (maxmemory, noeviction): results must
-- get out for the queue to drain. Redis refuses only a script's first write (scriptVerifyOOM in its script.c).
redis.call('DEL', 'pm:none')

local ttl, group_ttl = tonumber(ARGV[1]), tonumber(ARGV[2])
local written = 0

local function recorded_state(key)
  return string.match(redis.call('GETRANGE', key, 0, 40), '^{"status": ?"(%u+)"')
end

local ended = { SUCCESS = true, FAILURE = true, REVOKED = true }

for i = 1, #KEYS / 3 do
  local key, counters, stream = KEYS[3 * i - 2], KEYS[3 * i - 1], KEYS[3 * i]
  local record, is_end, counter, id = ARGV[4 * i - 1], ARGV[4 * i], ARGV[4 * i + 1], ARGV[4 * i + 2]
  local before = recorded_state(key)
  if before ~= 'SUCCESS' and (is_end == '1' or not ended[before]) then
    if ttl > 0 then
      redis.call('SET', key, record, 'EX', ttl)
    else
      redis.call('SET', key, record)
    end
    redis.call('PUBLISH', key, record)
    if counters ~= '' and is_end == '1' and not ended[before] then
      redis.call('HINCRBY', counters, counter, 1)
      redis.call('XADD', stream, '*', 'id', id)
      redis.call('EXPIRE', counters, group_ttl)
      redis.call('EXPIRE', stream, group_ttl)
    end
    written = written + 1
  end
end
return written
