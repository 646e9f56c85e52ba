-- cancel.lua: have Redis remember which jobs remote control revoked, for workers that did not hear it.
--
--- @include message
--
-- KEYS  1 cancelled (zset, job id -> ms)
-- ARGV  the jobs' ids
-- Returns how many were new.

local now, new = now_ms(), 0
for _, id in ipairs(ARGV) do
  new = new + redis.call('ZADD', KEYS[1], 'NX', now, id)
end
return new
