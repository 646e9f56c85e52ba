-- cancel.lua: cancel jobs that have not ended: note it for the workers.
--
-- A job without a record is not known here, and left alone: a mark under its id would hit whatever is submitted under
-- it later. What a stock producer sent has no record until a worker starts it; `control.revoke` cancels it.
--
--- @include constants time
--
-- KEYS
--   1      the cancelled jobs: a sorted set, id -> milliseconds
--   2...   each job's record
-- ARGV
--   each job's id
--
-- Returns {how many are cancelled, ids of those among them that run}.

local cancelled, running = 0, {}
for n = 1, #KEYS - 1 do
  local state = redis.call("HGET", KEYS[n + 1], "state")
  if state == QUEUED or state == RUNNING then
    redis.call("ZADD", KEYS[1], "NX", now_ms(), ARGV[n])
    redis.call("HSETNX", KEYS[n + 1], "cancel", now_s())
    cancelled = cancelled + 1
    if state == RUNNING then
      running[#running + 1] = ARGV[n]
    end
  end
end
return { cancelled, running }
