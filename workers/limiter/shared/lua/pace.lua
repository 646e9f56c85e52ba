-- pace.lua: the limited dimensions, their pace, and what of a schedule is kept when the pace changes.
--- @include clock
-- Gives: dimensions_of(spec), pace_of(dim), carry_over(state, dim, from), note_density(dim, from), factor_at(state, now),
--        flow_with(state, now, count).
--
-- A schedule is, per dimension, the instant up to which its capacity is sold (`tat:<name>`, as in GCRA). A request of
-- cost c may go at tat + (c - burst) / rate at the earliest, and moves tat on by c / rate. A lump larger than the burst
-- pays for the excess before it goes. So no instant is sold twice, whatever dies. `pace:<name>` is the pace at which that
-- was sold: what is sold ahead at one pace is more seconds of a lower one.

-- `level:name:limit:rate:burst:span ...`; level s is the key's own limiter, o the organisation's above it; span is how
-- far back the limit's window remembers (s), 0 where it has none.
local function dimensions_of(spec)
  local found = {}
  for level, name, limit, rate, burst, span in string.gmatch(spec, '(%a):(%a+):([^: ]+):([^: ]+):([^: ]+):([^: ]+)') do
    found[#found + 1] = {
      level = level, name = name,
      limit = tonumber(limit), rate = tonumber(rate), burst = tonumber(burst), span = tonumber(span),
    }
  end
  return found
end

-- How `pace:<name>` is written: how much is sold a second of what lies ahead, and the burst.
local function pace_of(dim)
  return string.format('%.9g %.9g', dim.density or dim.rate, dim.burst)
end

-- Where a dimension begins at its pace of now: `dim.tat`, the instant up to which it is sold, nil = nothing ever was.
-- Where the pace has changed, what its bucket holds or owes stays as it was. A lower rate makes nothing of what is sold
-- ahead of `from`, before which nothing goes, and no larger burst is given away. A higher rate brings nothing nearer: slots
-- that are out keep their instants; so what lies ahead may be sold less densely (`dim.density`) than at the rate of now. No
-- more is owed than a provider's window remembers.
local function carry_over(state, dim, from)
  dim.tat = tonumber(state['tat:' .. dim.name])
  local pace = state['pace:' .. dim.name]
  if not dim.tat or not pace or pace == pace_of(dim) then return end
  local density, burst = string.match(pace, '^(%S+) (%S+)$')
  local owed = math.max(0, dim.tat - from) * tonumber(density) + dim.burst - tonumber(burst)
  owed = math.min(math.max(0, owed), 60 * dim.rate)
  if owed > 0 then dim.tat = math.max(dim.tat, from + owed / dim.rate) end
  dim.owed, dim.owed_tat = owed, dim.tat
end

-- After sales and settlements, all at the rate of now.
local function note_density(dim, from)
  if not dim.owed or dim.tat <= from or dim.owed_tat <= from then return end
  dim.density = math.max(0, dim.owed + (dim.tat - dim.owed_tat) * dim.rate) / (dim.tat - from)
end

-- What a 429 has left of the stated pace; it comes back by 1 % of the whole each second.
local function factor_at(state, now)
  if not state.factor then return 1 end
  return math.min(1, tonumber(state.factor) + 0.01 * math.max(0, now - tonumber(state.factor_at)))
end

-- Requests a second over the last seconds: a decaying sum, divided by how much of the decay has been seen.
local function flow_with(state, now, count)
  local from = tonumber(state.flow_from or now)
  local sum = tonumber(state.flow or 0) * math.exp(-(now - tonumber(state.flow_at or now)) / 10) + count / 10
  local seen = 1 - math.exp(-math.max(1, now - from) / 10)
  return sum, sum / seen, from
end
