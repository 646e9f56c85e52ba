-- heartbeat.lua: renew a worker's leases, give back those of dead workers, hear of cancelled jobs.
--
-- Only Redis's clock counts. When nobody has run this for longer than a few heartbeats, it was Redis, or the network, that
-- was away, not one worker: then nothing is given back for as long as a lease lasts, so that every worker that is still
-- running its jobs can renew first.
--
-- KEYS  1 unacked, 2 unacked_index, 3 leases, 4 reaper (hash: at, grace_until), 5 cancelled (zset, job id -> ms)
-- ARGV  1 lease (ms), 2 heartbeat (ms), 3 priority steps, 4 separator, 5 key prefix, 6 prefix of the delayed sets,
--       7 cancellations seen so far (ms), 8 how long a cancellation is kept (ms); then the tags to renew
-- Returns {now (ms), {tags whose lease was lost}, messages given back, ms of the last cancellation seen,
--          {ids of newly cancelled jobs}}

local unacked, index, leases, reaper, cancelled = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local lease_ms, heartbeat_ms = tonumber(ARGV[1]), tonumber(ARGV[2])
local now = now_ms()

local lost = {}
for i = 9, #ARGV do
  if redis.call('ZSCORE', leases, ARGV[i]) then
    redis.call('ZADD', leases, now + lease_ms, ARGV[i])
    redis.call('ZADD', index, math.floor(now / 1000), ARGV[i])
  else
    lost[#lost + 1] = ARGV[i]
  end
end

local steps = {}
for step in string.gmatch(ARGV[3], '%d+') do
  steps[#steps + 1] = tonumber(step)
end

-- A message that has been on a worker's deathbed before waits a little, each time longer: if it is the one that kills
-- them, its neighbours get the time to end without it.
local function give_back(tag)
  local record = redis.call('HGET', unacked, tag)
  local raw, queue
  if record then raw, queue = unpacked(record) end
  if raw then
    local deliveries = history(raw) + 1
    raw = with_history(raw, deliveries, 1)
    if deliveries == 1 then
      redis.call('RPUSH', list_of(raw, ARGV[5] .. queue, steps, ARGV[4]), raw)
    else
      local delay_ms = 500 * 2 ^ math.min(deliveries, 6) * (0.5 + (now % 1000) / 2000)
      redis.call('ZADD', ARGV[5] .. ARGV[6] .. queue, now + math.floor(delay_ms), raw)
    end
  end
  forget(unacked, index, leases, tag)
end

local reaped_at = tonumber(redis.call('HGET', reaper, 'at') or 0)
local grace_until = tonumber(redis.call('HGET', reaper, 'grace_until') or 0)
if now - reaped_at > 3 * heartbeat_ms then
  grace_until = now + lease_ms
  redis.call('HSET', reaper, 'grace_until', grace_until)
end
redis.call('HSET', reaper, 'at', now)

local given_back = 0
if now >= grace_until then
  for _, tag in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', now, 'LIMIT', 0, 200)) do
    give_back(tag)
    given_back = given_back + 1
  end
end

redis.call('ZREMRANGEBYSCORE', cancelled, '-inf', now - tonumber(ARGV[8]))
local seen, ids = tonumber(ARGV[7]), {}
local news = redis.call('ZRANGEBYSCORE', cancelled, '(' .. ARGV[7], '+inf', 'WITHSCORES', 'LIMIT', 0, 1000)
for i = 1, #news, 2 do
  ids[#ids + 1] = news[i]
  seen = math.max(seen, tonumber(news[i + 1]))
end
return { now, lost, given_back, seen, ids }
