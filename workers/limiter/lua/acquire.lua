-- acquire.lua: everything that a process says and hears about one limiter, in one round trip. It settles what ended,
-- reports what waits, and is given the next run of dispatch slots: instants at which it may send.
--
-- A schedule is, per dimension, the instant up to which its capacity is sold (`tat:<name>`, as in GCRA). A request of
-- cost c may go at tat + (c - burst) / rate at the earliest, and moves tat on by c / rate. A lump larger than the burst
-- pays for the excess before it goes. So no instant is sold twice, whatever dies. `pace:<name>` is the pace at which
-- that was sold: what is sold ahead at one pace is more seconds of a lower one (carry_over in clock.lua).
--
-- The organisation's limits, which stand above several keys, have a calendar instead (calendar.lua): each key leases ahead
-- at a pace of its own, and a single end would lose for the others what lies between its slots.
--
-- Tokens that a provider counts by windows have beside both a memory of what the last minute took (window.lua).
--
-- A call is known by (process, seq). If its reply was lost, the same call gets the same reply again and changes nothing.
--
-- KEYS  1 clock (hash), 2 state (hash), 3 processes (hash: id -> "expiry seen backlog held vt"),
--       4 replies (hash: id -> "seq reply"), 5 day (hash: count of each day), 6 window (hash), 7 state of the
--       organisation's limiter, 8 the organisation's window
-- ARGV  1 now (s; '' = Redis's TIME), 2 process, 3 seq, 4 dimensions, 5 lease of a process (s), 6 longest horizon (s),
--       7 backlog: waiters without a slot, 8 held: calls in flight and slots unused, 9 calls in flight permitted (0 = any),
--       10 requests a day (0 = any), 11 costs of the first waiters: "count:input:output ...", 12 tokens to give back, by
--       the bin of their slots "bin:input:output ..." (negative: more was used than reserved; bin 0 = that of now),
--       13 "requests:reserved:used" of what was settled,
--       14 requests that went without a slot, 15 rate headers "what it tells:name:limit:remaining:reset s ...",
--       16 the epoch that this process knows (0 = it has had no reply yet), 17 1 = it leaves, 18 instants to give back (us), descending,
--       19 the told limits by which it made the dimensions, 20 width of a bin (s), 21 how far ahead any process leases (s),
--       22 tokens that one call may take beyond its reservation, 23 slots that no request used, and requests that
--       the provider refused
-- Returns {now, epoch, paused until or 0, wait, live processes, horizon, 1 = an unstated limit is being felt,
--          all processes, why it stopped, told limits "rpm=500,tpm=30000", slots ...}; instants and durations in us.

local now = limiter_now(KEYS[1], ARGV[1])
local me, seq = ARGV[2], ARGV[3]

local before = redis.call('HGET', KEYS[4], me)
if before then
  local its_seq, text = string.match(before, '^(%d+) (.*)$')
  if its_seq == seq then
    local reply = {}
    for word in string.gmatch(text, '%S+') do reply[#reply + 1] = word end
    local epoch_now, pause = unpack(redis.call('HMGET', KEYS[2], 'epoch', 'pause'))
    -- A pause since then has made its slots void.
    if epoch_now ~= reply[2] then reply = { unpack(reply, 1, 10) } end
    reply[1], reply[2] = micros(now), epoch_now or reply[2]
    reply[3] = tonumber(pause or 0) > now and micros(tonumber(pause)) or '0'
    return reply
  end
end

local lease_s, longest_s = tonumber(ARGV[5]), tonumber(ARGV[6])
local capped_s = 1
local backlog, held = tonumber(ARGV[7]), tonumber(ARGV[8])
local max_calls, max_day = tonumber(ARGV[9]), tonumber(ARGV[10])
local leaving = ARGV[17] == '1'

local state = hash(KEYS[2])
local levels = { s = state, o = hash(KEYS[7]) }
local dims, above = {}, {}
for _, dim in ipairs(dimensions_of(ARGV[4])) do
  if dim.level == 's' then dims[#dims + 1] = dim else above[#above + 1] = dim end
end
local is_new = not state.epoch

local headers = {}
for tells, name, limit, remaining, reset in string.gmatch(ARGV[15], '(%a+):(%a+):([%d.]+):([%d.]+):([%d.]+)') do
  headers[#headers + 1] = {
    tells = tells, name = name, limit = tonumber(limit), remaining = tonumber(remaining), reset = tonumber(reset),
  }
end

-- 1. The pace: as stated, cut where a 429 has shown that it is too high. What answers have told of the limits is kept
-- here for all processes. A process that made its dimensions without it sells nothing, or it would sell by another pace,
-- or by none.
local told, ended = {}, tonumber(string.match(ARGV[13], '^%d+'))
local said = { requests = tonumber(ARGV[14]), tokens = 0 }
for input, output in string.gmatch(ARGV[12], '%d+:(-?%d+):(-?%d+)') do
  said.tokens = said.tokens - tonumber(input) - tonumber(output)
end
for _, field in ipairs({ 'rpm', 'tpm', 'rpd' }) do
  local limit = told_limit(KEYS[2], state, field, headers, reference_of(state, dims, max_day, said, field), ended, now)
  if limit then told[#told + 1] = string.format('%s=%.0f', field, limit) end
end
told = table.concat(told, ',')
local knows_limits = told == ARGV[19]

-- A limit that is known, if only by what answers tell, takes the place of what 429s have taught.
local factor = factor_at(state, now)
local has_requests = false
for _, dim in ipairs(dims) do
  dim.rate = dim.rate * factor
  has_requests = has_requests or dim.name == 'requests'
end
local recent = not has_requests and recent_of(state)
if recent then count_window(KEYS[2], state, recent, now) end
local cap, is_searched = cap_at(state, now)
local is_lifted = has_requests and cap ~= nil
if has_requests then cap = nil end
if cap then dims[#dims + 1] = { name = 'requests', rate = cap, burst = 1, span = 0 } end

-- A limiter that nobody has used starts with one permit. One whose state is gone may have slots out that were leased
-- from the lost schedule; the new one begins behind the furthest of them, in the epoch that its processes know.
local its_epoch, width = tonumber(ARGV[16]), tonumber(ARGV[20])
local was_lost = is_new and its_epoch > 0
local lost_until = tonumber(state.lost_until or 0)
if was_lost then lost_until = math.ceil((now + tonumber(ARGV[21])) / width) * width end
local epoch = string.format('%.0f', math.max(tonumber(state.epoch or 1), its_epoch))
local from = math.max(now, lost_until, tonumber(state.pause or 0))
for _, dim in ipairs(dims) do
  local begins = math.max(now, lost_until) + (dim.name == 'requests' and (dim.burst - 1) / dim.rate or 0)
  carry_over(state, dim, from)
  dim.tat = dim.tat or begins
  if is_lifted and dim.name == 'requests' then
    dim.tat, dim.owed = math.min(dim.tat, math.max(begins, now + dim.burst / dim.rate)), nil
  end
end
if cap and is_searched then longest_s = math.min(longest_s, capped_s) end -- a pace that doubles must not be leased far ahead
local calendar = calendar_of(KEYS[7], levels.o, above, now)
local window = window_of(KEYS[6], dims, width, tonumber(ARGV[22]), now)
local window_above = window_of(KEYS[8], above, width, tonumber(ARGV[22]), now)
if was_lost then
  window.presume()
  window_above.presume()
end

-- 2. Settlement, and slots that come back. Only the end of a schedule can be undone: an instant in its middle would be
-- sold again at the end, beside another. A calendar can be undone anywhere. What a lost schedule sold was never taken
-- from this one.
--
-- What calls took beyond their reservations is owed for a minute at most, and fills no more than a window: the provider's
-- count may be wrong, and its own window forgets as well.
local back = { requests = 0, input = 0, output = 0, tokens = 0 }
for bin, input, output in string.gmatch(ARGV[12], '(%d+):(-?%d+):(-?%d+)') do
  bin = tonumber(bin)
  if bin == 0 then bin = math.floor(now / width) end
  if bin * width >= lost_until then
    local of_bin = { requests = 0, input = tonumber(input), output = tonumber(output) }
    of_bin.tokens = of_bin.input + of_bin.output
    for name, amount in pairs(of_bin) do back[name] = back[name] + amount end
    window.settle(bin, of_bin)
    window_above.settle(bin, of_bin)
  end
end
local back_above = {}
for name, amount in pairs(back) do back_above[name] = amount end
for _, dim in ipairs(above) do back_above[dim.name] = math.max(back[dim.name], -dim.limit) end
-- What went without a slot is mostly past, and its capacity has come again. But processes find Redis again one after
-- another, and the last still send for a moment while the first have slots: as much as that counts against the pace.
local moment_s = 0.3
local free, unsent = tonumber(ARGV[14]), tonumber(ARGV[23])
for _, dim in ipairs(dims) do
  local settled_tat = dim.tat - back[dim.name] / dim.rate
  if free > 0 and dim.name == 'requests' then
    settled_tat = math.max(dim.tat, now) + math.min(free / dim.rate, moment_s)
  elseif free > 0 and dim.span > 0 then
    settled_tat = math.min(settled_tat, math.max(dim.tat, now + moment_s)) -- its window remembers the rest
  end
  dim.tat = math.min(settled_tat, math.max(dim.tat, now + 60))
end
calendar.settle(back_above)
local returned = 0
for word in string.gmatch(ARGV[18], '%d+') do
  local instant = tonumber(word) / 1000000
  for _, dim in ipairs(dims) do
    if dim.name == 'requests' and math.abs(dim.tat - instant - dim.burst / dim.rate) < 0.000003 then
      dim.tat = dim.tat - 1 / dim.rate
      returned = returned + 1
    end
  end
  calendar.give_back(instant)
end

local counters = { 'requests', 'tokens', 'foreign_requests', 'foreign_tokens' }
local minute = math.floor(now / 60)
for _, level in pairs(levels) do
  if tonumber(level.minute or -1) ~= minute then
    local follows = tonumber(level.minute or -1) == minute - 1
    for _, name in ipairs(counters) do
      level['last_' .. name] = follows and level[name] or 0
      level[name] = 0
    end
  end
end

-- 3. Rate headers only ever slow us down: where the provider has counted more than we sent, somebody else uses the key,
-- and takes from the schedule as we do; what was seen of it is known from then on. After a lost state the rest may as well
-- be our own calls, which nobody remembers.
local function counted(name) return tonumber(state[name] or 0) + tonumber(state['last_' .. name] or 0) end
local used_today_by_header = 0
for _, header in ipairs(headers) do
  -- A bucket's `remaining` is its level, so only what `reset` confirms counts as used.
  local used = math.min(header.limit - header.remaining, header.reset * header.limit / 60)
  if header.tells == 'rpd' then
    -- Of the two latest answers of the day the lower counts: one odd number must not end it.
    local its_day, its_count = string.match(state.told_today or '', '^(%S+) (%S+)$')
    local count, today = header.limit - header.remaining, string.format('%.0f', math.floor(now / 86400))
    used_today_by_header = its_day == today and math.min(count, tonumber(its_count)) or 0
    redis.call('HSET', KEYS[2], 'told_today', today .. ' ' .. string.format('%.0f', count))
  elseif header.tells ~= 'none' and now >= lost_until + 120 then
    local name, others = header.name, 'foreign_' .. header.name
    local known = counted(name) + counted(others)
    if used > known + 2 + 0.02 * header.limit then
      state[others] = tonumber(state[others] or 0) + used - known
      for _, dim in ipairs(dims) do
        if dim.name == name then
          -- No later than the pace would have used up by the reset what remains.
          local latest = now + header.reset - header.remaining / dim.rate
          dim.tat = math.max(dim.tat, math.min(math.max(dim.tat, now) + (used - known) / dim.rate, latest))
        end
      end
    end
  end
end

-- 4. The processes: who is alive, who waits, who has had the least. One whose lease is over counts no more, but its last
-- reply stays: it may only have lost us, and make the call again.
local remember_s = 600
local live, all, held_by_others, slowest, mine = 0, 0, 0, nil, nil
for id, record in pairs(hash(KEYS[3])) do
  local expiry, seen, waits, holds, vt = string.match(record, '^(%S+) (%S+) (%S+) (%S+) (%S+)$')
  local expired_s = now - tonumber(expiry)
  if id == me then
    mine = { backlog = expired_s > 0 and 0 or tonumber(waits), vt = tonumber(vt) }
  elseif expired_s > remember_s then
    redis.call('HDEL', KEYS[3], id)
    redis.call('HDEL', KEYS[4], id)
  elseif expired_s <= 0 then
    all = all + 1
    held_by_others = held_by_others + tonumber(holds)
    -- A stopped process must not hold the others back for its whole lease.
    if tonumber(waits) > 0 and now - tonumber(seen) < math.max(1, 1.5 * longest_s) then
      live = live + 1
      slowest = math.min(slowest or tonumber(vt), tonumber(vt))
    end
  end
end
live, all = live + 1, all + 1
local system_vt = tonumber(state.vt or 0)
local vt = mine and mine.vt or system_vt
if not mine or mine.backlog == 0 then vt = math.max(vt, system_vt) end
system_vt = math.max(system_vt, math.min(vt, slowest or vt))

-- 5. The day's allowance.
local day = math.floor(now / 86400)
local known_today = max_day > 0 and tonumber(redis.call('HGET', KEYS[5], day) or 0) or 0
local used_today = math.max(known_today, used_today_by_header)

-- 6. Slots for the first waiters, in order; none overtakes.
local pause = tonumber(state.pause or 0)
local slots, wait, why, horizon, tokens = {}, 0, 'done', nil, 0
-- A limit on calls in flight is shared evenly while others wait too.
local most_calls = max_calls
if max_calls > 0 and live > 1 then most_calls = math.ceil(max_calls / live) end

-- Its instant, the seconds of the tightest dimension that it takes, and its places in the calendar.
local function first_instant(cost)
  local at, unit = math.max(now, pause, lost_until), 0
  for _, dim in ipairs(dims) do
    at = math.max(at, dim.tat + (cost[dim.name] - dim.burst) / dim.rate)
    unit = math.max(unit, cost[dim.name] / dim.rate)
  end
  for _, dim in ipairs(above) do unit = math.max(unit, cost[dim.name] / dim.rate) end
  local places
  at, places = calendar.place(cost, window_above.place(cost, window.place(cost, at)))
  return at, unit, places
end

local function sell(cost, at, places)
  for _, dim in ipairs(dims) do
    local c = cost[dim.name]
    dim.tat = math.max(dim.tat, at - math.max(0, c - dim.burst) / dim.rate) + c / dim.rate
  end
  calendar.sell(places)
  window.sell(cost, at)
  window_above.sell(cost, at)
end

local function refusal(at, unit)
  if not knows_limits then return 'limits', 0 end
  if max_day > 0 and used_today + #slots >= max_day then return 'day', (day + 1) * 86400 - now end
  if max_calls > 0 then
    local calls = held + #slots
    if calls >= most_calls or calls + held_by_others >= max_calls then return 'calls', 0.1 end
  end
  -- The head may look further, by what its own cost takes, or small requests of others would for ever stand before it.
  if at > now + horizon + (#slots == 0 and unit or 0) then return 'far', at - now end
  local near = math.max(0.05, horizon / 4)
  if slowest and vt - slowest > horizon / live and at > now + near then return 'fair', at - now end
end

for count, input, output in string.gmatch(ARGV[11], '(%d+):(%d+):(%d+)') do
  local cost = { requests = 1, input = tonumber(input), output = tonumber(output) }
  cost.tokens = cost.input + cost.output
  for _ = 1, tonumber(count) do
    local at, unit, places = first_instant(cost)
    horizon = horizon or math.max(0.1, math.min(longest_s, 32 * live * unit))
    local reason, wait_s = refusal(at, unit)
    if reason then
      why, wait = reason, wait_s
      break
    end
    sell(cost, at, places)
    vt = vt + unit
    tokens = tokens + cost.tokens
    slots[#slots + 1] = micros(at)
    if recent then recent.add(at, 1) end
  end
  if why ~= 'done' then break end
end
horizon = horizon or 0.1

-- 7. Write it down.
local settled, reserved, used = string.match(ARGV[13], '^(%d+):(%d+):(%d+)$')
local flow, _, flow_from = flow_with(state, now, #slots + free)
local function write_counts(key, level)
  level.requests = math.max(0, tonumber(level.requests) + #slots + free - returned - unsent)
  level.tokens = tonumber(level.tokens) + tokens - back.tokens
  local fields = { 'minute', minute }
  for _, name in ipairs(counters) do
    for _, field in ipairs({ name, 'last_' .. name }) do
      fields[#fields + 1] = field
      fields[#fields + 1] = level[field] or 0
    end
  end
  redis.call('HSET', key, unpack(fields))
  redis.call('EXPIRE', key, 172800)
end
write_counts(KEYS[2], state)
if recent then
  recent.add(now, free - unsent - returned)
  redis.call('HSET', KEYS[2], 'recent', recent.text((state.counts and tonumber(state.struck_at) or now) - 60))
end
redis.call('HSET', KEYS[2],
  'epoch', epoch, 'vt', seconds(system_vt),
  'dimensions', knows_limits and ARGV[4] or state.dimensions or '',
  'settled', tonumber(state.settled or 0) + tonumber(settled),
  'reserved_tokens', string.format('%.0f', tonumber(state.reserved_tokens or 0) + tonumber(reserved)),
  'used_tokens', string.format('%.0f', tonumber(state.used_tokens or 0) + tonumber(used)),
  'flow', seconds(flow), 'flow_at', seconds(now), 'flow_from', seconds(flow_from),
  'max_in_flight', max_calls, 'requests_per_day', max_day)
if state.cap and not cap then redis.call('HDEL', KEYS[2], 'cap', 'cap_at') end
if state.factor and factor >= 1 then redis.call('HDEL', KEYS[2], 'factor', 'factor_at') end
for _, dim in ipairs(dims) do
  note_density(dim, from)
  redis.call('HSET', KEYS[2], 'tat:' .. dim.name, seconds(dim.tat), 'pace:' .. dim.name, pace_of(dim))
end
if #above > 0 then
  calendar.write()
  write_counts(KEYS[7], levels.o)
end
window.write()
window_above.write()
if was_lost then redis.call('HSET', KEYS[2], 'lost_until', seconds(lost_until)) end
local used_after = used_today + #slots - returned
if max_day > 0 and used_after ~= known_today then
  redis.call('HSET', KEYS[5], day, used_after)
  redis.call('EXPIRE', KEYS[5], 172800)
end

local reply = {
  micros(now), epoch, pause > now and micros(pause) or '0', micros(wait), tostring(live), micros(horizon),
  cap and '1' or '0', tostring(all), why, told == '' and '-' or told,
}
for _, slot in ipairs(slots) do reply[#reply + 1] = slot end

if leaving then
  redis.call('HDEL', KEYS[3], me)
else
  redis.call('HSET', KEYS[3], me, table.concat({
    seconds(now + lease_s), seconds(now), math.max(0, backlog - #slots), held + #slots, seconds(vt),
  }, ' '))
  redis.call('EXPIRE', KEYS[3], 2 * remember_s)
end
redis.call('HSET', KEYS[4], me, seq .. ' ' .. table.concat(reply, ' '))
redis.call('EXPIRE', KEYS[4], 2 * remember_s)
return reply
