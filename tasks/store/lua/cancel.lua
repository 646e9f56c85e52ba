--[[
Cancel jobs that have not ended: note it for the workers.

A job without a record is not known here, and left alone: a mark under its id would hit whatever is submitted under it
later. What a stock producer sent has no record until a worker starts it; `control.revoke` cancels it.

KEYS
  1      the cancelled jobs: a sorted set, id -> milliseconds
  2...   each job's record
ARGV
  each job's id

Returns {how many are cancelled, ids of those among them that run}.
]]
local time = redis.call("TIME")
local now_s = string.format("%d.%06d", time[1], time[2])
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local cancelled, running = 0, {}
for n = 1, #KEYS - 1 do
  local state = redis.call("HGET", KEYS[n + 1], "state")
  if state == "queued" or state == "running" then
    redis.call("ZADD", KEYS[1], "NX", now_ms, ARGV[n])
    redis.call("HSETNX", KEYS[n + 1], "cancel", now_s)
    cancelled = cancelled + 1
    if state == "running" then
      running[#running + 1] = ARGV[n]
    end
  end
end
return { cancelled, running }
