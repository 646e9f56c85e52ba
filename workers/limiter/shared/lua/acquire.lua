-- acquire.lua: everything that a process says and hears about one limiter, in one round trip. It settles what ended,
-- reports what waits, and is given the next run of dispatch slots: instants at which it may send.
--
--- @include constants clock pace counts learned headers processes replies schedule settlement sale
--
-- KEYS  1 clock (hash), 2 state (hash), 3 processes (hash), 4 replies (hash), 5 day (hash: count of each day), 6 window (hash),
--       7 state of the organisation's limiter, 8 the organisation's window
-- ARGV  1 a JSON map:
--       now                seconds; '' = Redis's TIME
--       process, seq       who calls, and its number of the call
--       epoch              the latest that it knows; 0 = it has had no reply yet
--       leaves             whether it takes its leave
--       lease_s            how long it counts as alive from now on
--       longest_s          its longest horizon; furthest_s  how far ahead any process leases
--       backlog            waiters without a slot; held  calls in flight and slots unused
--       dimensions         the plan's, as dimensions_of reads them
--       learned            the learned limits by which it made them; learns  the fields that it knows of
--       max_in_flight, requests_per_day  0 = any
--       costs              of the first waiters: [[count, input, output], ...]
--       beyond_tokens      what one call may take beyond its reservation
--       refunds            tokens to give back, by the bin of their slots: [[bin, input, output], ...]; negative: more was
--                          used than reserved; bin 0 = that of now; bin_s  a bin's width
--       settled, reserved_tokens, used_tokens  calls that were answered
--       went_free          requests that went without a slot
--       unsent             slots that no request used, and requests that the provider refused
--       returned_us        instants to give back, descending
--       headers            rate headers: [{tells, name, limit, remaining, reset_s}, ...]
-- Returns {now, epoch, paused until or 0, wait, live processes, horizon, 1 = an unstated limit is being felt,
--          all processes, why it stopped, learned limits, slots ...}; instants and durations in us. A list of texts,
--          because cjson writes 14 digits of a number, and an instant has 16.

local ask = cjson.decode(ARGV[1])
local now = limiter_now(KEYS[1], ask.now)
local reply = repeated_reply(KEYS[4], KEYS[2], ask, now)
if reply then return reply end

local state = hash(KEYS[2])
local levels = { s = state, o = hash(KEYS[7]) }

-- What answers state of the limits is kept here for all processes. A process that made its dimensions without it is sold
-- nothing, or it would be by another pace, or by none.
local schedule = schedule_of(KEYS[2], state, ask, now)
local learned = learned_limits(KEYS[2], state, ask, schedule.dims, now)
local knows_limits = learned == ask.learned
open_schedule(schedule, KEYS, state, levels.o, ask)

local tokens_back = settle(schedule, ask)
local returned = take_back(schedule, ask.returned_us)
for _, level in pairs(levels) do turn_minute(level, now) end
local used_today_by_header = note_others(KEYS[2], state, schedule.dims, ask.headers, schedule.lost_until, now)
local processes = processes_of(KEYS[3], KEYS[4], ask, state, now)

local day, has_day = math.floor(now / 86400), ask.requests_per_day > 0
local known_today = has_day and tonumber(redis.call('HGET', KEYS[5], day) or 0) or 0
local used_today = math.max(known_today, used_today_by_header)
local sale = sell(schedule, ask, processes, {
  probe_in_s = schedule.is_doubted and probe_in_s(state, now),
  knows_limits = knows_limits,
  left_today = has_day and ask.requests_per_day - used_today,
  next_day_s = (day + 1) * 86400 - now,
})
local granted = #sale.slots
if schedule.is_doubted and granted > 0 then note_probe(KEYS[2], tonumber(sale.slots[1]) / 1000000) end

local sent = granted + ask.went_free - returned - ask.unsent
local flow, _, flow_from = flow_with(state, now, granted + ask.went_free)
if schedule.recent then schedule.recent.add(now, ask.went_free - returned - ask.unsent) end
write_counts(KEYS[2], state, sent, sale.tokens - tokens_back)
redis.call('HSET', KEYS[2],
  'epoch', schedule.epoch, 'vt', seconds(processes.system_vt),
  'dimensions', knows_limits and ask.dimensions or state.dimensions or '',
  'settled', string.format('%.0f', tonumber(state.settled or 0) + ask.settled),
  'reserved_tokens', string.format('%.0f', tonumber(state.reserved_tokens or 0) + ask.reserved_tokens),
  'used_tokens', string.format('%.0f', tonumber(state.used_tokens or 0) + ask.used_tokens),
  'flow', seconds(flow), 'flow_at', seconds(now), 'flow_from', seconds(flow_from),
  'max_in_flight', ask.max_in_flight, 'requests_per_day', ask.requests_per_day)
write_schedule(schedule, KEYS, state)
if #schedule.above > 0 then write_counts(KEYS[7], levels.o, sent, sale.tokens - tokens_back) end
local used_after = used_today + granted - returned
if has_day and used_after ~= known_today then
  redis.call('HSET', KEYS[5], day, used_after)
  redis.call('EXPIRE', KEYS[5], LIMITER_TTL_S)
end

reply = {
  micros(now), schedule.epoch, schedule.pause > now and micros(schedule.pause) or '0', micros(sale.wait),
  tostring(processes.live), micros(sale.horizon), schedule.cap and '1' or '0', tostring(processes.all), sale.why,
  learned == '' and '-' or learned,
}
for _, slot in ipairs(sale.slots) do reply[#reply + 1] = slot end
keep_process(KEYS[3], ask, granted, sale.vt, now)
keep_reply(KEYS[4], ask, reply)
return reply
