-- pause.lua: a provider has answered 429. Nobody sends before the pause is over; a pause is only ever made longer.
--
-- The epoch rises, and every process drops the slots that it has not used; it hears of it by the channel at once, or
-- else with its next reply. The buckets are emptied, so that the first after the pause is followed at the pace, not by a
-- herd. Calls that were under way when the pause began (an older epoch) make it longer at most: they tell nothing new.
--
-- KEYS  1 clock, 2 state
-- ARGV  1 now (s; '' = Redis's TIME), 2 channel, 3 the limiter's name, 4 epoch in which the refused request was sent,
--       5 seconds the provider asks for (-1 = it does not say), 6 dimensions, 7 1 = the limit of requests is stated,
--       8 requests that went without a slot and were not yet reported
-- Returns {now, epoch, paused until} (us)

local least_cap = 0.05

-- The pace of a model whose limits nobody knows after a 429 that asked for so many seconds (-1 = for none), where it grows
-- to, and in how many seconds; see cap_at. `per_s` requests a second were sent of late, `unsaid` in the last second.
local function cap_after(state, now, asked_s, per_s, unsaid)
  local in_force, searched = cap_at(state, now)
  local minute = math.floor(now / 60)
  local this, last = tonumber(state.requests or 0), tonumber(state.last_requests or 0)
  if tonumber(state.minute or -1) == minute - 1 then this, last = 0, this end
  if tonumber(state.minute or -1) < minute - 1 then this, last = 0, 0 end
  local in_minute = this + last * (1 - now % 60 / 60) + unsaid
  local known = in_minute / 60
  local searched_before = now - tonumber(string.match(state.cap_to or '', '(%S+)$') or -math.huge) < 300
  -- A long wait tells of windows: what was sent within the last minute is their limit, if that was more than a few.
  local is_window = asked_s > 5 and (in_minute >= 30 or searched_before)
  local top, share, seconds_to
  local good = 0.85 * known
  if is_window then
    top, share, seconds_to = math.min(in_force or known, known), 0.9, 60
  elseif not in_force and not searched_before and per_s < 1 then
    return 1, 1, 0 -- so slow a flow shows nothing of the limit
  elseif not in_force then
    top, share, seconds_to = per_s, 0.5, 20
  elseif searched or now - tonumber(state.cap_at) < 2 then
    top, share, seconds_to = in_force, 0.5, 20 -- still too high where it began, or more than doubled on the way
  else
    top, share, seconds_to = math.min(in_force, math.max(known, 0.9 * in_force)), 0.88, 60
  end
  local cap = math.max(least_cap, share * top, good)
  return cap, math.max(top, cap / share), seconds_to
end

local now = limiter_now(KEYS[1], ARGV[1])
local state = hash(KEYS[2])
local epoch = math.max(tonumber(state.epoch or 1), tonumber(ARGV[4]))
local pause = tonumber(state.pause or 0)
local asked_s = tonumber(ARGV[5])
local is_news = tonumber(ARGV[4]) >= epoch and pause <= now

local strikes = tonumber(state.strikes or 0)
if now - tonumber(state.struck_at or 0) > 60 then strikes = 0 end
if is_news then strikes = strikes + 1 end
if asked_s < 0 then asked_s = math.min(60, 2 ^ (math.max(1, strikes) - 1)) end

local ends = math.max(pause, now + asked_s)
if is_news or ends > pause + 0.001 then epoch = epoch + 1 end

local unsaid = tonumber(ARGV[8])
local _, per_s = flow_with(state, now, unsaid)
redis.call('HSET', KEYS[2], 'epoch', epoch, 'pause', seconds(ends), 'strikes', strikes)
if is_news then
  redis.call('HSET', KEYS[2], 'struck_at', seconds(now))
  redis.call('HINCRBY', KEYS[2], 'refused', 1)
  if ARGV[7] ~= '1' then
    local cap, top, seconds_to = cap_after(state, now, tonumber(ARGV[5]), per_s, unsaid)
    redis.call('HSET', KEYS[2], 'cap', seconds(cap), 'cap_at', seconds(ends),
      'cap_to', table.concat({ seconds(top), seconds_to, seconds(ends) }, ' '))
  elseif strikes > 1 then
    -- The first may be the network's doing. The second says that the limit is lower than stated, or shared.
    redis.call('HSET', KEYS[2], 'factor', seconds(math.max(0.05, factor_at(state, now) * 0.7)), 'factor_at', seconds(ends))
  end
end

for _, dim in ipairs(dimensions_of(ARGV[6])) do
  if dim.level == 's' then
    local full = dim.name == 'requests' and dim.burst - 1 or dim.burst
    local emptied = ends + full / dim.rate
    if emptied > tonumber(state['tat:' .. dim.name] or 0) then
      redis.call('HSET', KEYS[2], 'tat:' .. dim.name, seconds(emptied), 'pace:' .. dim.name, pace_of(dim))
    end
  end
end
redis.call('EXPIRE', KEYS[2], 172800)

local reply = { micros(now), tostring(epoch), micros(ends) }
redis.call('PUBLISH', ARGV[2], table.concat({ ARGV[3], epoch, micros(ends - now) }, ' '))
return reply
