-- settle.lua: what the job has found that tried an open breaker.
--
--- @include breaker
--
-- KEYS  1 all breakers
-- ARGV  1 a JSON map:
--       now              ms; '' = Redis's TIME
--       process, name, channel
--       outcome          works: it closes for all; fails: all wait twice as long, at most longest_s; released: nothing
--       code, message, status   of the failure
-- Returns the breaker as tell() gives it; '' = it is closed

local call = cjson.decode(ARGV[1])
local now = breaker_now(call.now)
local state = stored(KEYS[1], call.name)
if not state then return '' end
if call.outcome == 'works' then
  close(KEYS[1], call, state, now)
  return ''
end
-- The probe of a process that was too late is another's by now.
if state.process ~= call.process then return tell(state, now, call.process) end
state.process, state.probing_until = nil, 0
if call.outcome == 'fails' then
  state.pause = math.min(state.pause * 2, math.max(call.longest_s * 1000, state.pause))
  state['until'] = now + state.pause
  state.code, state.message, state.status = call.code, call.message, call.status
end
store(KEYS[1], state, now)
local text = tell(state, now, call.process)
publish(call, text)
return text
