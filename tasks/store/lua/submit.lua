-- submit.lua: enqueue jobs: for each, its record and its Celery message, all or none of them.
--
-- A job whose id has a record already is left as it is: submitting again after a time-out is safe, and costs nothing.
-- So is one whose record is gone and whose result is still stored. A job of another tenant is not for this one to know.
--
--- @include constants
--
-- KEYS
--   1..3   the queue's lists, one for each of PRIORITIES
--   4      the group's hash, or "" where the jobs have no group
--   5      the group's list of job ids, or ""
--   6      the cancelled jobs: a sorted set, id -> milliseconds
--   7      the forgotten jobs: a sorted set, id -> milliseconds
--   8...   each job's record
-- ARGV
--   1      the group's id, or ""
--   2      a JSON list with, for each job: [id, number of its list (1..3), task, model, tenant, delay in milliseconds,
--          1 if its id may be known]; one argument for all, because packing arguments is what a bulk submission spends
--          most on
--   3      what stands before the ids in the keys of results, or "" where results are kept in another Redis
--   4      what the client takes for the time, in seconds: the messages' own times were reckoned from it
--   5...   each job's message
--
-- Returns how many jobs are new. Where nothing was written: -2 when the client's time is not Redis's (it was set, or
-- the submission was long on its way), -1 when the group is closed and one of them is new, or a list of those whose ids
-- are another tenant's.

local WRONG_BY_S = 5
local time = redis.call("TIME")
if math.abs(time[1] - tonumber(ARGV[4])) > WRONG_BY_S then
  return -2
end

local group, result_prefix = ARGV[1], ARGV[3]
local jobs = cjson.decode(ARGV[2])
local first_record, first_message = 8, 5

local fresh, taken, owners = {}, {}, {}
for n, job in ipairs(jobs) do
  local record = KEYS[first_record + n - 1]
  local id, tenant, may_be_known = job[1], job[5], job[7] == 1
  -- A record without a state is a mark that somebody else left; the job itself was never enqueued.
  if not owners[record] and redis.call("HEXISTS", record, "state") == 1 then
    owners[record] = redis.call("HGET", record, "tenant") or ""
  end
  if owners[record] then
    if owners[record] ~= tenant then
      taken[#taken + 1] = n
    end
  elseif not (may_be_known and result_prefix ~= "" and redis.call("EXISTS", result_prefix .. id) == 1) then
    owners[record] = tenant
    fresh[#fresh + 1] = n
  end
end

if #taken > 0 then
  return taken
end

if group ~= "" and #fresh > 0 then
  local total = redis.call("HGET", KEYS[4], "total")
  if total and tonumber(total) >= 0 then
    return -1
  end
end

local now = string.format("%d.%06d", time[1], time[2])

local messages, ids = { {}, {}, {} }, {}
for _, n in ipairs(fresh) do
  local record = KEYS[first_record + n - 1]
  local id, list, task, model, tenant, delay_ms = unpack(jobs[n])
  redis.call("HSET", record, "state", QUEUED, "submitted_at", now, "task", task, "model", model, "tenant", tenant,
    "group", group, "priority", PRIORITIES[list], "delay_ms", delay_ms)
  -- A job that waits for its time must not outlive its own record.
  redis.call("EXPIRE", record, WAITING_TTL_S + math.ceil(delay_ms / 1000))
  table.insert(messages[list], ARGV[first_message + n - 1])
  ids[#ids + 1] = id
end
if #ids > 0 then
  -- A mark is about an earlier job of this id.
  redis.call("ZREM", KEYS[6], unpack(ids))
  redis.call("ZREM", KEYS[7], unpack(ids))
end
for list = 1, #PRIORITIES do
  if #messages[list] > 0 then
    redis.call("LPUSH", KEYS[list], unpack(messages[list]))
  end
end

if group ~= "" then
  if #ids > 0 then
    redis.call("RPUSH", KEYS[5], unpack(ids))
  end
  redis.call("HSETNX", KEYS[4], "total", -1)
  redis.call("HINCRBY", KEYS[4], "submitted", #fresh)
  redis.call("EXPIRE", KEYS[4], WAITING_TTL_S)
  redis.call("EXPIRE", KEYS[5], WAITING_TTL_S)
end
return #fresh
