-- offer.lua: announce which models a worker can call, to those that can't.
--
--- @include message
--
-- KEYS  for each queue that the worker takes from, its offers (zset, alias -> ms when the offer ends)
-- ARGV  1 how long the offer holds (ms)
--       then the aliases
-- Returns 1.

local now, lasts_ms = now_ms(), tonumber(ARGV[1])
local offers = {}
for i = 2, #ARGV do
  offers[#offers + 1], offers[#offers + 2] = now + lasts_ms, ARGV[i]
end
for _, key in ipairs(KEYS) do
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
  -- Redis's clock was set back: what was announced by the other one would hold for too long.
  redis.call('ZREMRANGEBYSCORE', key, now + 10 * lasts_ms, '+inf')
  call_for_all('ZADD', key, offers)
  redis.call('PEXPIRE', key, lasts_ms)
end
return 1
