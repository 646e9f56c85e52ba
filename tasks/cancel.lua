--[[
Cancel jobs: note it for workers that see the job later, and tell all workers now.

A job without a record (of a stock producer, not yet taken) is cancelled all the same; it just has no record to mark.

KEYS
  1      the cancelled jobs: a sorted set, id -> milliseconds
  2...   each job's record
ARGV
  1      the channel of Celery's remote control
  2      its revoke message, naming all the jobs
  3...   each job's id

Returns how many records were marked.
]]
local time = redis.call("TIME")
local now_s = string.format("%d.%06d", time[1], time[2])
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local marked = 0
for n = 1, #KEYS - 1 do
  local record = KEYS[n + 1]
  redis.call("ZADD", KEYS[1], "NX", now_ms, ARGV[n + 2])
  if redis.call("HEXISTS", record, "state") == 1 then
    marked = marked + redis.call("HSETNX", record, "cancel", now_s)
  end
end
redis.call("PUBLISH", ARGV[1], ARGV[2])
return marked
