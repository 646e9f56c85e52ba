-- witness.lua: a provider that asks for an hour: how much of it one answer is believed, and when a second one says so.
--- @include clock
-- Gives: believed_s(key, state, now, asked_s, alone_s, is_news) for a 429; is_doubted(key, state, ask, now);
--        probe_in_s(state, now); note_probe(key, at).
--
-- One answer stops everybody for `alone_s` at most. Then one request goes alone, the probe, until its answer is known: an
-- answer ends the doubt, another 429 that asks for as long is the second witness, and the pause stands. It is heard for an
-- hour at a time, because a day's quota may be raised, or an account paid, before its time.
--
-- The state holds `long_until`, the instant up to which the provider asked us to wait, from the first witness until an
-- answer comes; and `probe_at`, when the probe went. A probe without an answer is followed by another.

local longest_s, remembered_s, probe_s = 3600, 86400, 30

local function believed_s(key, state, now, asked_s, alone_s, is_news)
  if asked_s <= alone_s then
    if is_news and state.long_until then redis.call('HDEL', key, 'long_until', 'probe_at') end
    return asked_s
  end
  local was_said = state.long_until and now < tonumber(state.long_until) + remembered_s
  if is_news or not was_said then
    redis.call('HSET', key, 'long_until', seconds(now + asked_s))
    redis.call('HDEL', key, 'probe_at')
  end
  return math.min(asked_s, is_news and was_said and longest_s or alone_s)
end

-- Whether only a probe may go.
local function is_doubted(key, state, ask, now)
  if not state.long_until then return false end
  if ask.settled > 0 and now >= tonumber(state.pause or 0) then
    redis.call('HDEL', key, 'long_until', 'probe_at')
    state.long_until, state.probe_at = nil, nil
    return false
  end
  if ask.unsent > 0 then state.probe_at = nil end -- nobody has sent it
  return true
end

-- In how many seconds a probe may go.
local function probe_in_s(state, now)
  return state.probe_at and math.max(0, tonumber(state.probe_at) + probe_s - now) or 0
end

local function note_probe(key, at)
  redis.call('HSET', key, 'probe_at', seconds(at))
end
