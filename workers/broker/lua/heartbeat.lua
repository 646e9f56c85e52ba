-- heartbeat.lua: renew a worker's leases, give back those of dead workers, hear of cancelled jobs.
--
-- Only Redis's clock counts. When nobody has run this for longer than two heartbeats, it was Redis, or the network, that
-- was away, not one worker: then nothing is given back for as long as a lease lasts, so that every worker that is still
-- running its jobs can renew first. (A lease is four heartbeats: one that was renewed in time outlives the two.)
--
--- @include message
--
-- KEYS  1 unacked, 2 unacked_index, 3 leases, 4 reaper (hash: at, grace_until), 5 cancelled (zset, job id -> ms),
--       6 suspected (zset, job id or tag -> ms when the mark ends)
-- ARGV  1 lease (ms), 2 heartbeat (ms), 3 priority steps, 4 separator, 5 key prefix, 6 prefix of the delayed sets,
--       7 prefix of the jobs' records, 8 cancellations seen so far (ms), 9 how long a cancellation is kept (ms); then the
--       tags to renew
-- Returns {now (ms), {tags whose lease was lost}, messages given back, ms by which Redis's clock was set back,
--          ms up to which cancellations were seen, {ids of cancelled jobs, some perhaps for the second time},
--          {tags whose call is not the first of its job}}

local unacked, index, leases, reaper, cancelled, suspected =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local lease_ms, heartbeat_ms, steps = tonumber(ARGV[1]), tonumber(ARGV[2]), numbers(ARGV[3])
local now = now_ms()

local lost, flagged = {}, {}
local any_suspected = redis.call('ZREMRANGEBYSCORE', suspected, '-inf', now) >= 0 and redis.call('ZCARD', suspected) > 0
for i = 10, #ARGV do
  if redis.call('ZSCORE', leases, ARGV[i]) then
    redis.call('ZADD', leases, now + lease_ms, ARGV[i])
    redis.call('ZADD', index, math.floor(now / 1000), ARGV[i])
    if any_suspected and redis.call('ZREM', suspected, ARGV[i]) == 1 then flagged[#flagged + 1] = ARGV[i] end
  else
    lost[#lost + 1] = ARGV[i]
  end
end

-- A message that has been on a worker's deathbed before waits a little, each time longer: if it is the one that kills
-- them, its neighbours get the time to end without it. They come back one by one: 617 of 1,000, near the golden section,
-- puts neighbouring fences far apart.
local function delay_ms(deliveries, tag)
  local share = (tonumber(string.match(tag, '%d%d?%d?$') or 0) * 617 % 1000) / 1000
  return math.floor(500 * 2 ^ math.min(deliveries, 6) * (0.5 + share / 2))
end

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
      redis.call('ZADD', ARGV[5] .. ARGV[6] .. queue, now + delay_ms(deliveries, tag), raw)
    end
    mark_queued(raw, ARGV[5] .. ARGV[7])
  end
  forget(unacked, index, leases, tag)
end

local reaped_at = tonumber(redis.call('HGET', reaper, 'at') or 0)
local grace_until = tonumber(redis.call('HGET', reaper, 'grace_until') or 0)

-- Redis's clock was set back: what it gave before ends by as much later. A lease is cut to what a new one would get at
-- least, because those given since can't be told from those given before.
local set_back_ms = math.max(0, reaped_at - now)
if set_back_ms > 0 then
  local ends = redis.call('ZRANGEBYSCORE', leases, math.max(now + lease_ms, now + set_back_ms - lease_ms), '+inf', 'WITHSCORES')
  for i = 1, #ends, 2 do
    redis.call('ZADD', leases, math.max(tonumber(ends[i + 1]) - set_back_ms, now + lease_ms), ends[i])
  end
end
if now - reaped_at > 2 * heartbeat_ms or grace_until > now + lease_ms then
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

-- One that is cancelled in this very millisecond, after us, must not be missed: the next look begins with it again.
redis.call('ZREMRANGEBYSCORE', cancelled, '-inf', now - tonumber(ARGV[9]))
local seen, seen_before = now, tonumber(ARGV[8])
if seen_before > now + 10 then seen_before = now - lease_ms end -- the clock was set back
local news = redis.call('ZRANGEBYSCORE', cancelled, seen_before, '+inf', 'WITHSCORES', 'LIMIT', 0, 1000)
if #news == 2000 then
  -- There may be more: go on next time behind this millisecond, so take all of it now.
  local last = tonumber(news[#news])
  news = redis.call('ZRANGEBYSCORE', cancelled, seen_before, last, 'WITHSCORES')
  seen = math.min(last + 1, now)
end
local ids = {}
for i = 1, #news, 2 do
  ids[#ids + 1] = news[i]
end
return { now, lost, given_back, set_back_ms, seen, ids, flagged }
