-- report.lua: calls of one process have failed at the provider. Opens the breaker where that is an outage.
--
-- The rule is that of window.py, over the calls of all processes that have met failures. A job counts once. Failures that
-- the provider has not answered (a hang, a broken connection) may be the process's own network's, so they count when two
-- processes have seen some. With the first failure all processes are asked for their answers, as long as the window lasts.
--
--- @include breaker constants
--
-- KEYS  1 all breakers, 2 jobs that failed with a status, 3 jobs that failed without, 4 processes that saw those,
--       5 answers by second, 6 how often each breaker has opened
-- ARGV  1 a JSON map:
--       now              ms; '' = Redis's TIME
--       process, name, channel
--       failing          {{job, whether the provider answered}, ...}
--       answered         {{whole seconds ago, count}, ...}
--       failures, window_s, least_span_s, open_s   the rule
--       code, message, status   of the latest failure; missing where nothing failed
-- Returns the breaker as tell() gives it; '' = it is closed; 'watch' = report the same again in a moment

local call = cjson.decode(ARGV[1])
local now = breaker_now(call.now)
local open = stored(KEYS[1], call.name)
if open then return tell(open, now, call.process) end

local from = now - call.window_s * 1000
for i = 2, 4 do redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', '(' .. from) end
local was_quiet = redis.call('ZCARD', KEYS[2]) + redis.call('ZCARD', KEYS[3]) == 0

for _, failed in ipairs(call.failing) do
  local job, has_status = failed[1], failed[2]
  if has_status or redis.call('ZSCORE', KEYS[2], job) then
    redis.call('ZREM', KEYS[3], job)
    redis.call('ZADD', KEYS[2], now, job)
  else
    redis.call('ZADD', KEYS[3], now, job)
    redis.call('ZADD', KEYS[4], now, call.process)
  end
end
for _, answers in ipairs(call.answered) do
  redis.call('HINCRBY', KEYS[5], math.floor(now / 1000) - answers[1], answers[2])
end
for i = 2, 5 do redis.call('EXPIRE', KEYS[i], BREAKER_WINDOW_TTL_S) end

local counted = { KEYS[2] }
if redis.call('ZCARD', KEYS[4]) > 1 then counted[2] = KEYS[3] end

local latest = {}
for _, key in ipairs(counted) do
  local found = redis.call('ZREVRANGE', key, 0, call.failures - 1, 'WITHSCORES')
  for i = 2, #found, 2 do latest[#latest + 1] = tonumber(found[i]) end
end
table.sort(latest, function(one, other) return one > other end)
local first = latest[call.failures]

local function is_outage()
  if not first then return false end
  local begins, failed, answered = math.min(first, now - call.least_span_s * 1000), 0, 0
  for _, key in ipairs(counted) do failed = failed + redis.call('ZCOUNT', key, begins, '+inf') end
  local seconds = redis.call('HGETALL', KEYS[5])
  for i = 1, #seconds, 2 do
    local second = tonumber(seconds[i])
    if second < math.floor(from / 1000) then
      redis.call('HDEL', KEYS[5], seconds[i])
    elseif second >= math.floor(begins / 1000) then
      answered = answered + tonumber(seconds[i + 1])
    end
  end
  return failed >= answered
end

if #call.failing == 0 then return '' end
if was_quiet then
  publish(call, cjson.encode({ watch = call.name }))
  return 'watch'
end
if not is_outage() then return '' end
local state = {
  name = call.name,
  epoch = 0,
  since = now,
  pause = call.open_s * 1000,
  ['until'] = now + call.open_s * 1000,
  probing_until = 0,
  code = call.code,
  message = call.message,
  status = call.status,
}
store(KEYS[1], state, now)
redis.call('DEL', KEYS[2], KEYS[3], KEYS[4], KEYS[5])
redis.call('HINCRBY', KEYS[6], call.name, 1)
redis.call('EXPIRE', KEYS[6], BREAKER_COUNTS_TTL_S)
local text = tell(state, now, call.process)
publish(call, text)
return text
