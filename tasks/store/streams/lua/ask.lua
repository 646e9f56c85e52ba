-- ask.lua: somebody wants to read a job's answer as it comes. Workers hear of it with the job's message, and those
-- that have it already at once.
--
--- @include constants time
--
-- KEYS  1 the streams that were asked for (zset, job id -> ms), 2 the job's stream
-- ARGV  1 a JSON map: id (the job's), channel
-- Returns 1; 0 where the stream is there already.

local ask = cjson.decode(ARGV[1])
if redis.call('EXISTS', KEYS[2]) == 1 then
  return 0
end
local now = now_ms()
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - WAITING_TTL_S * 1000)
redis.call('ZADD', KEYS[1], now, ask.id)
redis.call('EXPIRE', KEYS[1], WAITING_TTL_S)
redis.call('PUBLISH', ask.channel, ask.id)
return 1
