-- heartbeat.lua: renew a worker's leases, give back those of dead workers, hear of cancelled jobs.
--
-- Only Redis's clock counts. When nobody has run this for longer than two heartbeats, it was Redis, or the network, that
-- was away, not one worker: then nothing is given back for as long as a lease lasts, so that every worker that is still
-- running its jobs can renew first. (A lease is four heartbeats: one that was renewed in time outlives the two.)
--
--- @include constants message
--
-- KEYS  1 unacked, 2 unacked_index, 3 leases, 4 reaper (hash: at, grace_until), 5 cancelled (zset, job id -> ms),
--       6 suspected (zset, job id or tag -> ms when the mark ends), 7 forgotten (zset, job id -> ms)
-- ARGV  1 a JSON map:
--       lease_ms, heartbeat_ms
--       lists            as list_of takes them
--       prefix, delayed, records   prefixes: of all keys, of the delayed sets, of the jobs' records
--       seen_ms          up to when cancellations were seen
--       then the tags to renew
-- Returns {now (ms), {tags whose lease was lost}, messages given back, ms by which Redis's clock was set back,
--          ms up to which cancellations were seen, {ids of cancelled jobs, some perhaps for the second time},
--          {tags whose call is not the first of its job}}

local unacked, index, leases, reaper, cancelled, suspected, forgotten =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local ask = cjson.decode(ARGV[1])
local lease_ms = ask.lease_ms
local now = now_ms()

local lost, flagged = {}, {}
local any_suspected = redis.call('ZREMRANGEBYSCORE', suspected, '-inf', now) >= 0 and redis.call('ZCARD', suspected) > 0
for i = 2, #ARGV do
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

-- 1 if the message is back in its queue; 0 if its job has ended, and there is nobody who could tell.
local function give_back(tag)
  local record = redis.call('HGET', unacked, tag)
  local raw, queue
  if record then raw, queue = unpacked(record) end
  local is_forgotten = raw and redis.call('ZREM', forgotten, job_id(raw) or '') == 1
  if raw and not is_forgotten then
    local deliveries = history(raw) + 1
    raw = with_history(raw, deliveries, 1)
    if deliveries == 1 then
      redis.call('RPUSH', list_of(raw, ask.prefix .. queue, ask.lists), raw)
    else
      redis.call('ZADD', ask.delayed .. queue, now + delay_ms(deliveries, tag), raw)
    end
    mark_queued(raw, ask.records)
  end
  forget(unacked, index, leases, tag)
  return is_forgotten and 0 or 1
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
if now - reaped_at > 2 * ask.heartbeat_ms or grace_until > now + lease_ms then
  grace_until = now + lease_ms
  redis.call('HSET', reaper, 'grace_until', grace_until)
end
redis.call('HSET', reaper, 'at', now)

local given_back = 0
if now >= grace_until then
  for _, tag in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', now, 'LIMIT', 0, 200)) do
    given_back = given_back + give_back(tag)
  end
end

-- One that is cancelled in this very millisecond, after us, must not be missed: the next look begins with it again.
redis.call('ZREMRANGEBYSCORE', cancelled, '-inf', now - WAITING_TTL_S * 1000)
redis.call('ZREMRANGEBYSCORE', forgotten, '-inf', now - RECORD_TTL_S * 1000)
local seen, seen_before = now, ask.seen_ms
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
