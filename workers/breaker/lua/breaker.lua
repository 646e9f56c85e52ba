-- breaker.lua: how a breaker is kept, and how it is told.
--- @include constants time
-- Gives: breaker_now(given), ms; stored(key, name), nil = it is closed; tell(state, now, process), a JSON text;
--        store(key, state), publish(call, text), close(key, call, state, now).
--
-- All breakers that are open stand in one hash, so that a process that has missed something reads them in one command.
-- An instant is in ms of Redis's clock; to other processes it is told as a distance, which needs no clock.

local function breaker_now(given)
  return given ~= '' and tonumber(given) or now_ms()
end

local function stored(key, name)
  local text = redis.call('HGET', key, name)
  return text and cjson.decode(text)
end

local function tell(state, now, process)
  return cjson.encode({
    name = state.name,
    epoch = state.epoch,
    open = true,
    open_for_ms = now - state.since,
    left_ms = state['until'] - now,
    pause_ms = state.pause,
    probing_ms = math.max(0, state.probing_until - now),
    ours = process ~= nil and state.process == process and state.probing_until > now,
    code = state.code,
    message = state.message,
    status = state.status,
  })
end

-- The epoch never falls below the clock, so that it rises even after a Redis that lost its data.
local function store(key, state, now)
  state.epoch = math.max(state.epoch + 1, now)
  redis.call('HSET', key, state.name, cjson.encode(state))
  redis.call('EXPIRE', key, BREAKER_TTL_S)
end

local function publish(call, text)
  redis.call('PUBLISH', call.channel, text)
end

local function close(key, call, state, now)
  redis.call('HDEL', key, state.name)
  local epoch = math.max(state.epoch + 1, now)
  publish(call, cjson.encode({ name = state.name, epoch = epoch, open = false }))
end
