-- processes.lua: who is alive, who waits, who has had the least.
--- @include constants clock
-- Gives: processes_of(key, replies_key, ask, state, now) = { live, all, held_by_others, slowest, vt, system_vt };
--        keep_process(key, ask, granted, vt, now).
--
-- The hash `key` holds process -> "expiry seen backlog held vt". Virtual time is the seconds of the tightest dimension that
-- a process has had. One that has nobody waiting saves up nothing, and takes up the system's when it comes back.
--
-- A process whose lease is over counts no more, but its last reply stays: it may only have lost us, and make the call
-- again.

local remember_s = LIMITER_PROCESS_TTL_S / 2

local function processes_of(key, replies_key, ask, state, now)
  local found = { live = 1, all = 1, held_by_others = 0, slowest = nil }
  local vt, was_waiting
  for id, record in pairs(hash(key)) do
    local expiry, seen, waits, holds, its_vt = string.match(record, '^(%S+) (%S+) (%S+) (%S+) (%S+)$')
    local expired_s = now - tonumber(expiry)
    if id == ask.process then
      vt, was_waiting = tonumber(its_vt), expired_s <= 0 and tonumber(waits) > 0
    elseif expired_s > remember_s then
      redis.call('HDEL', key, id)
      redis.call('HDEL', replies_key, id)
    elseif expired_s <= 0 then
      found.all = found.all + 1
      found.held_by_others = found.held_by_others + tonumber(holds)
      -- A stopped process must not hold the others back for its whole lease.
      if tonumber(waits) > 0 and now - tonumber(seen) < math.max(1, 1.5 * ask.longest_s) then
        found.live = found.live + 1
        found.slowest = math.min(found.slowest or tonumber(its_vt), tonumber(its_vt))
      end
    end
  end
  local system_vt = tonumber(state.vt or 0)
  vt = vt or system_vt
  if not was_waiting then vt = math.max(vt, system_vt) end
  found.vt, found.system_vt = vt, math.max(system_vt, math.min(vt, found.slowest or vt))
  return found
end

local function keep_process(key, ask, granted, vt, now)
  if ask.leaves then
    redis.call('HDEL', key, ask.process)
    return
  end
  redis.call('HSET', key, ask.process, table.concat({
    seconds(now + ask.lease_s), seconds(now), math.max(0, ask.backlog - granted), ask.held + granted, seconds(vt),
  }, ' '))
  redis.call('EXPIRE', key, LIMITER_PROCESS_TTL_S)
end
