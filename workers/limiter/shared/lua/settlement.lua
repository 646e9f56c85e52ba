-- settlement.lua: what ended calls have left or taken beyond, what went without a slot, and slots that come back.
--- @include clock schedule
-- Gives: settle(schedule, ask), which returns the tokens that came back; take_back(schedule, instants), which returns how
--        many slots did.
--
-- What a lost schedule sold was never taken from this one. What calls took beyond their reservations is owed for a minute at
-- most, and fills no more than a window: the provider's count may be wrong, and its own window forgets as well.

local owed_s = 60

-- Processes find Redis again one after another, and the last still send without slots for a moment while the first have
-- some: as much of what went free as that counts against the pace. The rest is past, and its capacity has come again.
local moment_s = 0.3

local function add_refunds(schedule, ask)
  local back = { requests = 0, input = 0, output = 0, tokens = 0 }
  for _, refund in ipairs(ask.refunds) do
    local bin, input, output = unpack(refund)
    if bin == 0 then bin = math.floor(schedule.now / ask.bin_s) end
    if bin * ask.bin_s >= schedule.lost_until then
      local of_bin = { requests = 0, input = input, output = output, tokens = input + output }
      for name, amount in pairs(of_bin) do back[name] = back[name] + amount end
      schedule.window.settle(bin, of_bin)
      schedule.window_above.settle(bin, of_bin)
    end
  end
  return back
end

local function settle(schedule, ask)
  local now, free, back = schedule.now, ask.went_free, add_refunds(schedule, ask)
  local back_above = {}
  for name, amount in pairs(back) do back_above[name] = amount end
  for _, dim in ipairs(schedule.above) do back_above[dim.name] = math.max(back[dim.name], -dim.limit) end
  for _, dim in ipairs(schedule.dims) do
    local settled_tat = dim.tat - back[dim.name] / dim.rate
    if free > 0 and dim.name == 'requests' then
      settled_tat = math.max(dim.tat, now) + math.min(free / dim.rate, moment_s)
    elseif free > 0 and dim.span > 0 then
      settled_tat = math.min(settled_tat, math.max(dim.tat, now + moment_s)) -- its window remembers the rest
    end
    dim.tat = math.min(settled_tat, math.max(dim.tat, now + owed_s))
  end
  schedule.calendar.settle(back_above)
  return back.tokens
end

-- Only the end of a schedule can be undone: an instant in its middle would be sold again at the end, beside another. A
-- calendar can be undone anywhere. The latest instants come first.
local function take_back(schedule, instants_us)
  local returned = 0
  for _, instant_us in ipairs(instants_us) do
    local instant = instant_us / 1000000
    for _, dim in ipairs(schedule.dims) do
      if dim.name == 'requests' and math.abs(dim.tat - instant - dim.burst / dim.rate) < 0.000003 then
        dim.tat = dim.tat - 1 / dim.rate
        returned = returned + 1
      end
    end
    schedule.calendar.give_back(instant)
  end
  return returned
end
