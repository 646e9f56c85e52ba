-- unstated.lua: the pace of a model whose limit of requests nobody knows, as 429s have shown it.
--- @include clock recent
-- Gives: cap_at(state, now); streak_at(state, now) and cap_after(...) for a 429; count_window(key, state, recent, now) for
--        the time after it; most_a_minute(state, cap).
--
-- The state holds `cap`, the pace of the instant `cap_at`, and `cap_to` = "hold seconds cap_at", how it grows from there:
-- it comes near `hold` in so many seconds, stays there, and then leaves it behind the faster the longer no 429 comes (as
-- TCP's CUBIC). With 0 seconds it doubles each second: nothing is known of where the limit lies. `hold` is a little below
-- `ceiling` = "requests a second, how it was found, cap_at, how often in this place", where the 429 came. To look for the
-- ceiling again costs a 429 or two. Of one that was found twice in the same place they are kept to a small share of the
-- calls, however slow these are, and the more often it was found there, the more seldom it is looked for.
--
-- A long wait tells of windows: then what was let through in the minute before it is their limit. It is counted while the
-- pause lasts (`counts` = "seconds, pace"), because what other processes have sent, and what of it was refused, is
-- heard in that time. A provider that states no wait and refuses the first calls after two pauses of ours (`streak`) has
-- windows too: a bucket would have had room. Then no more goes in any minute than was let through in that one, or what a
-- burst has taken of the window would be asked for again and again until it is old enough.
--
-- (A process of an older version writes no `cap_to`, or leaves that of another `cap_at`.)

local least_cap, margin = 0.05, 0.95
local first_look_s, look_calls, looks_apart, most_often = 60, 250, 1.5, 5
local long_wait_s, few_requests = 5, 30
local soon_s, hardly_any, refused_again = 2, 3, 3

-- The pace at `now`, nil = none is felt, and whether nothing is known of where the limit lies. It is forgotten when nobody
-- would feel it, at a thousand or ten times what it was.
local function cap_at(state, now)
  if not state.cap then return nil, false end
  local cap, age = tonumber(state.cap), math.max(0, now - tonumber(state.cap_at))
  local hold, seconds_to, its_at = string.match(state.cap_to or '', '^(%S+) (%S+) (%S+)$')
  if its_at ~= state.cap_at then hold, seconds_to = cap / 0.7, 60 end
  hold, seconds_to = tonumber(hold), tonumber(seconds_to)
  if seconds_to == 0 then
    if age > 10 then return nil, true end
    return cap * 2 ^ age, true
  end
  local grown = hold + (hold - cap) * (age / seconds_to - 1) ^ 3
  if grown > 10 * cap then return nil, false end
  return grown, false
end

-- From `ends` on, `cap`, which grows to `hold`.
local function set_cap(key, ends, cap, hold, seconds_to)
  ends = seconds(ends)
  redis.call('HSET', key, 'cap', seconds(cap), 'cap_at', ends,
    'cap_to', table.concat({ seconds(hold), seconds(seconds_to), ends }, ' '))
end

-- The same where a ceiling was found: `share` of it, but no less than most of what was let through, `known` a second.
local function set_ceiling(key, before, ends, ceiling, found, share, known)
  local cap = math.max(least_cap, share * ceiling, 0.85 * known)
  local look_s, often = first_look_s, 1
  if before and math.abs(ceiling / before.rate - 1) < 0.2 then
    often = math.min(before.often + 1, most_often)
    look_s = math.max(look_s, look_calls * looks_apart ^ (often - 2) / ceiling)
  end
  set_cap(key, ends, cap, math.max(margin * ceiling, cap / margin), look_s)
  redis.call('HSET', key, 'ceiling', table.concat({ seconds(ceiling), found, seconds(ends), often }, ' '))
end

-- { rate, found, often } of the ceiling from which the pace of now grows, if there is one.
local function ceiling_of(state)
  local rate, found, its_at, often = string.match(state.ceiling or '', '^(%S+) (%S+) (%S+) ?(%d*)$')
  if its_at and its_at == state.cap_at then
    return { rate = tonumber(rate), found = found, often = tonumber(often) or 1 }
  end
end

-- How many 429s have come one after the other, this one included, with hardly a call between a pause and the next.
local function streak_at(state, now)
  if not state.cap then return 1 end
  local ended = tonumber(state.cap_at)
  -- The bin in which the pause ended may hold what went before it.
  local next_bin = math.ceil(ended / recent_bin_s) * recent_bin_s
  local is_next = now - ended < soon_s or recent_of(state).sum(next_bin, now) <= hardly_any
  return is_next and tonumber(state.streak or 0) + 1 or 1
end

-- Of windows whose end nobody tells, how many may go in any minute; nil = nothing is known of such. It is less than was
-- let through, or one more would be asked for each time that one has left. An even pace is not held up by how coarsely this is counted.
local function most_a_minute(state, cap)
  local ceiling = cap and ceiling_of(state)
  if ceiling and ceiling.found == 'guessed' then return 60 * math.max(0.97 * ceiling.rate, 1.04 * cap) end
end

-- After a 429 at `now` that asked for so many seconds (-1 = for none), the `streak`th of its kind, and a pause until `ends`.
-- `per_s` requests a second were sent of late, `unsaid` in the last second.
local function cap_after(key, state, now, ends, asked_s, streak, per_s, unsaid)
  local in_force, searched = cap_at(state, now)
  local known = math.max(0, recent_of(state).sum(now - 60, now) + unsaid - 1) / 60
  local searched_before = now - tonumber(string.match(state.cap_to or '', '(%S+)$') or -math.huge) < 300
  local before = ceiling_of(state)
  local is_soon = state.cap_at and now - tonumber(state.cap_at) < soon_s
  redis.call('HDEL', key, 'ceiling', 'counts')
  redis.call('HSET', key, 'streak', streak)
  if asked_s > long_wait_s then
    local words = { in_force or 0, before and before.rate or 0, searched_before and 1 or 0, before and before.often or 1 }
    redis.call('HSET', key, 'counts', table.concat(words, ' '))
  end
  if before and (before.found == 'counted' and is_soon or before.found == 'guessed' and streak > 1) then
    -- The provider's window is full still, of what went before the pause.
    set_ceiling(key, before, ends, before.rate, before.found, 0.9, 0)
  elseif asked_s < 0 and streak >= refused_again and 60 * known >= few_requests then
    set_ceiling(key, before, ends, known, 'guessed', 0.9, known)
  elseif not in_force and not searched_before and per_s < 1 then
    set_cap(key, ends, 1, 1, 0) -- so slow a flow shows nothing of the limit
  elseif not in_force or searched or is_soon then
    -- Still too high where it began, or more than doubled on the way: the limit is somewhere below.
    local top = in_force or per_s
    local cap = math.max(least_cap, 0.5 * top, 0.85 * known)
    set_cap(key, ends, cap, math.max(top, cap / 0.5), 20)
  else
    local found = before and before.found == 'guessed' and asked_s < 0 and 'guessed' or 'felt'
    set_ceiling(key, before, ends, math.min(in_force, math.max(known, 0.9 * in_force)), found, 0.88, known)
  end
end

-- While a long pause lasts, and once after it: what was let through before it. The count after it is the last.
local function count_window(key, state, recent, now)
  local in_force, rate, searched_before, often = string.match(state.counts or '', '^(%S+) (%S+) (%S+) ?(%d*)$')
  if not in_force or not state.cap then return end
  local ends = tonumber(state.cap_at)
  local count = recent.sum(tonumber(state.struck_at) - 60, ends - recent_bin_s)
  if count >= few_requests or searched_before == '1' then
    local known = count / 60
    local ceiling = in_force == '0' and known or math.min(tonumber(in_force), known)
    local before = rate ~= '0' and { rate = tonumber(rate), often = tonumber(often) or 1 } or nil
    set_ceiling(key, before, ends, ceiling, 'counted', 0.9, known)
  end
  if now >= ends then redis.call('HDEL', key, 'counts') end
  for _, field in ipairs({ 'cap', 'cap_to', 'ceiling' }) do state[field] = redis.call('HGET', key, field) or nil end
end
