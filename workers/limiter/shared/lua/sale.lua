-- sale.lua: slots for the first waiters, in order; none overtakes.
--- @include clock schedule processes
-- Gives: sell(schedule, ask, processes, allowance) = { slots (us), tokens, why, wait, horizon, vt }.
--
-- `allowance` says whether the process knows the limits by which is sold, how many requests of the day are left, in how many
-- seconds the next day begins, and, where only a probe may go (witness.lua), in how many seconds it may.

-- The instant, the seconds of the tightest dimension that the cost takes, and its places in the calendar.
local function first_instant(schedule, cost)
  local at, unit = schedule.from, 0
  for _, dim in ipairs(schedule.dims) do
    at = math.max(at, dim.tat + (cost[dim.name] - dim.burst) / dim.rate)
    unit = math.max(unit, cost[dim.name] / dim.rate)
  end
  for _, dim in ipairs(schedule.above) do unit = math.max(unit, cost[dim.name] / dim.rate) end
  if schedule.most_a_minute then at = schedule.recent.room_at(at, schedule.most_a_minute) end
  local places
  at, places = schedule.calendar.place(cost, schedule.window_above.place(cost, schedule.window.place(cost, at)))
  return at, unit, places
end

local function take(schedule, cost, at, places)
  for _, dim in ipairs(schedule.dims) do
    local c = cost[dim.name]
    dim.tat = math.max(dim.tat, at - math.max(0, c - dim.burst) / dim.rate) + c / dim.rate
  end
  schedule.calendar.sell(places)
  schedule.window.sell(cost, at)
  schedule.window_above.sell(cost, at)
  if schedule.recent then schedule.recent.add(at, 1) end
end

-- Why the next slot, at `at`, is not sold now, and how long to wait; nil = it is.
local function refusal(schedule, ask, processes, allowance, sale, at, unit)
  local now, granted, horizon = schedule.now, #sale.slots, sale.horizon
  if not allowance.knows_limits then return 'limits', 0 end
  if allowance.probe_in_s and (granted > 0 or allowance.probe_in_s > 0) then
    return 'far', math.max(1, allowance.probe_in_s)
  end
  if allowance.left_today and granted >= allowance.left_today then return 'day', allowance.next_day_s end
  if ask.max_in_flight > 0 then
    -- It is shared evenly while others wait too.
    local calls, share = ask.held + granted, math.ceil(ask.max_in_flight / processes.live)
    if calls >= share or calls + processes.held_by_others >= ask.max_in_flight then return 'calls', 0.1 end
  end
  -- The head may look further, by what its own cost takes, or small requests of others would for ever stand before it.
  if at > now + horizon + (granted == 0 and unit or 0) then return 'far', at - now end
  local ahead_s = processes.slowest and sale.vt - processes.slowest
  local near = math.max(0.05, horizon / 4)
  if ahead_s and ahead_s > horizon / processes.live and at > now + near then return 'fair', at - now end
end

local function sell(schedule, ask, processes, allowance)
  local sale = { slots = {}, tokens = 0, why = 'done', wait = 0, horizon = nil, vt = processes.vt }
  for _, run in ipairs(ask.costs) do
    local count, input, output = unpack(run)
    local cost = { requests = 1, input = input, output = output, tokens = input + output }
    for _ = 1, count do
      local at, unit, places = first_instant(schedule, cost)
      sale.horizon = sale.horizon or math.max(0.1, math.min(schedule.longest_s, 32 * processes.live * unit))
      local why, wait = refusal(schedule, ask, processes, allowance, sale, at, unit)
      if why then
        sale.why, sale.wait = why, wait
        break
      end
      take(schedule, cost, at, places)
      sale.vt = sale.vt + unit
      sale.tokens = sale.tokens + cost.tokens
      sale.slots[#sale.slots + 1] = micros(at)
    end
    if sale.why ~= 'done' then break end
  end
  sale.horizon = sale.horizon or 0.1
  return sale
end
