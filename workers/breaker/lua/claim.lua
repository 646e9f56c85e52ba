-- claim.lua: a process asks whether its job may try an open breaker for all.
--
--- @include breaker
--
-- KEYS  1 all breakers
-- ARGV  1 a JSON map:
--       now              ms; '' = Redis's TIME
--       process, name, channel
--       probe_s          how long the others wait for it, at least: nobody else tries in the same period
-- Returns the breaker as tell() gives it, `ours` if the job may try; '' = it is closed

local call = cjson.decode(ARGV[1])
local now = breaker_now(call.now)
local state = stored(KEYS[1], call.name)
if not state then return '' end
if now >= state['until'] and now >= state.probing_until then
  state.process = call.process
  state.probing_until = now + math.max(call.probe_s * 1000, state.pause)
  store(KEYS[1], state, now)
end
return tell(state, now, call.process)
