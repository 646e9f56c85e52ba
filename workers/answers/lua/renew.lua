-- renew.lua: a process says which calls it has under way, and hears how often answers were cleared.
--
-- A call whose end has not been said yet is among them; one of a parked job lasts until the job comes back.
--
--- @include when_full time flight
--
-- KEYS  1 the answers' state (hash); then the flights
-- ARGV  1 a JSON map: lease_ms; process and numbers, one for each flight: its token
-- Returns how often answers were cleared by hand.

local ask = cjson.decode(ARGV[1])
local ends = now_ms() + ask.lease_ms
for n, number in ipairs(ask.numbers) do
  local key = KEYS[n + 1]
  local flight = read_flight(key)
  if flight.token == token_of(ask.process, number) and not flight.is_parked then
    redis.call('HSET', key, 'ends', ends)
    keep_flight(key, math.max(ends, flight.due or 0))
  end
end
return tonumber(redis.call('HGET', KEYS[1], 'cleared') or 0)
