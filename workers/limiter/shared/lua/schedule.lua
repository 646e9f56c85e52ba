-- schedule.lua: one limiter's schedule as it stands at `now`, and what of it is put down again.
--- @include clock pace recent unstated witness calendar window
-- Gives: schedule_of(state_key, state, ask, now) = { now, pause, from, lost_until, epoch, is_doubted, longest_s, dims, above }, and with
--        open_schedule(schedule, keys, state, above_state, ask) also { cap, factor, recent, calendar, window, window_above };
--        write_schedule(schedule, keys, state).
--
-- The organisation's limits, which stand above several keys, have a calendar instead of an instant: each key leases ahead at
-- a pace of its own, and a single end would lose for the others what lies between its slots.

-- A pace that doubles must not be leased far ahead.
local searched_horizon_s = 1

-- As stated, cut where a 429 has shown that it is too high. A limit that is known, if only by what answers state, takes
-- the place of what 429s have taught.
local function set_pace(schedule, keys, state, now)
  schedule.factor = factor_at(state, now)
  local has_requests = false
  for _, dim in ipairs(schedule.dims) do
    dim.rate = dim.rate * schedule.factor
    has_requests = has_requests or dim.name == 'requests'
  end
  if not has_requests then
    schedule.recent = recent_of(state)
    count_window(keys[2], state, schedule.recent, now)
  end
  local cap, is_searched = cap_at(state, now)
  if has_requests then return cap ~= nil end
  -- While a long wait is doubted, nobody goes without a slot.
  cap = cap or schedule.is_doubted and 1 or nil
  schedule.cap = cap
  schedule.most_a_minute = most_a_minute(state, cap)
  if cap then
    schedule.dims[#schedule.dims + 1] = { name = 'requests', rate = cap, burst = 1, span = 0 }
    if is_searched then schedule.longest_s = math.min(schedule.longest_s, searched_horizon_s) end
  end
  return false
end

-- A limiter that nobody has used starts with one permit. One whose state is gone may have slots out that were leased from
-- the lost schedule; the new one begins behind the furthest of them, in the epoch that its processes know.
local function set_beginnings(schedule, state, is_lifted, now)
  for _, dim in ipairs(schedule.dims) do
    local begins = math.max(now, schedule.lost_until) + (dim.name == 'requests' and (dim.burst - 1) / dim.rate or 0)
    carry_over(state, dim, schedule.from)
    dim.tat = dim.tat or begins
    if is_lifted and dim.name == 'requests' then
      dim.tat, dim.owed = math.min(dim.tat, math.max(begins, now + dim.burst / dim.rate)), nil
    end
  end
end

local function schedule_of(state_key, state, ask, now)
  local schedule = { now = now, longest_s = ask.longest_s, dims = {}, above = {} }
  for _, dim in ipairs(dimensions_of(ask.dimensions)) do
    local level = dim.level == 's' and schedule.dims or schedule.above
    level[#level + 1] = dim
  end
  schedule.was_lost = not state.epoch and ask.epoch > 0
  schedule.lost_until = tonumber(state.lost_until or 0)
  if schedule.was_lost then
    schedule.lost_until = math.ceil((now + ask.furthest_s) / ask.bin_s) * ask.bin_s
  end
  schedule.is_doubted = is_doubted(state_key, state, ask, now)
  schedule.epoch = string.format('%.0f', math.max(tonumber(state.epoch or 1), ask.epoch))
  schedule.pause = tonumber(state.pause or 0)
  schedule.from = math.max(now, schedule.lost_until, schedule.pause)
  return schedule
end

local function open_schedule(schedule, keys, state, above_state, ask)
  local now = schedule.now
  set_beginnings(schedule, state, set_pace(schedule, keys, state, now), now)
  schedule.calendar = calendar_of(keys[7], above_state, schedule.above, now)
  schedule.window = window_of(keys[6], schedule.dims, ask.bin_s, ask.beyond_tokens, now)
  schedule.window_above = window_of(keys[8], schedule.above, ask.bin_s, ask.beyond_tokens, now)
  if schedule.was_lost then
    schedule.window.presume()
    schedule.window_above.presume()
  end
end

local function write_schedule(schedule, keys, state)
  local key = keys[2]
  if state.cap and not schedule.cap then redis.call('HDEL', key, 'cap', 'cap_at') end
  if state.factor and schedule.factor >= 1 then redis.call('HDEL', key, 'factor', 'factor_at') end
  for _, dim in ipairs(schedule.dims) do
    note_density(dim, schedule.from)
    redis.call('HSET', key, 'tat:' .. dim.name, seconds(dim.tat), 'pace:' .. dim.name, pace_of(dim))
  end
  if #schedule.above > 0 then schedule.calendar.write() end
  schedule.window.write()
  schedule.window_above.write()
  if schedule.recent then
    local counts_from = state.counts and tonumber(state.struck_at) or schedule.now
    redis.call('HSET', key, 'recent', schedule.recent.text(counts_from - 60))
  end
  if schedule.was_lost then redis.call('HSET', key, 'lost_until', seconds(schedule.lost_until)) end
end
