-- pause.lua: a provider has answered 429. Nobody sends before the pause is over; a pause is only ever made longer.
--
-- The epoch rises, and every process drops the slots that it has not used; it hears of it by the channel at once, or
-- else with its next reply. The buckets are emptied, so that the first after the pause is followed at the pace, not by a
-- herd. Calls that were under way when the pause began (an older epoch) make it longer at most: they tell nothing new.
--
--- @include constants clock pace unstated witness
--
-- KEYS  1 clock, 2 state
-- ARGV  1 a JSON map:
--       now              seconds; '' = Redis's TIME
--       channel, name    where it is published, and the limiter's name
--       epoch            in which the refused request was sent
--       asked_s          what the provider asks for; -1 = it does not say
--       alone_s          how much of it one answer is believed
--       dimensions       as for acquire.lua; knows_requests  whether the limit of requests is stated or learned
--       went_free        requests that went without a slot and were not yet reported
-- Returns {now, epoch, paused until} (us)

local report = cjson.decode(ARGV[1])
local now = limiter_now(KEYS[1], report.now)
local state = hash(KEYS[2])
local epoch = math.max(tonumber(state.epoch or 1), report.epoch)
local pause = tonumber(state.pause or 0)
local asked_s = report.asked_s
local is_news = report.epoch >= epoch and pause <= now

local strikes = tonumber(state.strikes or 0)
if now - tonumber(state.struck_at or 0) > 60 then strikes = 0 end
if is_news then strikes = strikes + 1 end
local is_long = asked_s > report.alone_s
-- What is learned by 429s is meant to meet one now and then: only those that follow each other make a pause longer.
local streak = streak_at(state, now)
local refusals = report.knows_requests and math.max(1, strikes) or streak
if asked_s < 0 then asked_s = math.min(60, 2 ^ (refusals - 1)) end
asked_s = believed_s(KEYS[2], state, now, asked_s, report.alone_s, is_news)

local ends = math.max(pause, now + asked_s)
if is_news or ends > pause + 0.001 then epoch = epoch + 1 end

local unsaid = report.went_free
local _, per_s = flow_with(state, now, unsaid)
redis.call('HSET', KEYS[2], 'epoch', epoch, 'pause', seconds(ends), 'strikes', strikes)
if is_news then
  redis.call('HSET', KEYS[2], 'struck_at', seconds(now))
  redis.call('HINCRBY', KEYS[2], 'refused', 1)
  if not report.knows_requests then
    -- So long a wait tells of no window of a minute.
    cap_after(KEYS[2], state, now, ends, is_long and -1 or report.asked_s, streak, per_s, unsaid)
  elseif strikes > 1 then
    -- The first may be the network's doing. The second says that the limit is lower than stated, or shared.
    redis.call('HSET', KEYS[2], 'factor', seconds(math.max(0.05, factor_at(state, now) * 0.7)), 'factor_at', seconds(ends))
  end
end

for _, dim in ipairs(dimensions_of(report.dimensions)) do
  if dim.level == 's' then
    local full = dim.name == 'requests' and dim.burst - 1 or dim.burst
    local emptied = ends + full / dim.rate
    if emptied > tonumber(state['tat:' .. dim.name] or 0) then
      redis.call('HSET', KEYS[2], 'tat:' .. dim.name, seconds(emptied), 'pace:' .. dim.name, pace_of(dim))
    end
  end
end
redis.call('EXPIRE', KEYS[2], LIMITER_TTL_S)

local reply = { micros(now), tostring(epoch), micros(ends) }
redis.call('PUBLISH', report.channel, table.concat({ report.name, epoch, micros(ends - now) }, ' '))
return reply
