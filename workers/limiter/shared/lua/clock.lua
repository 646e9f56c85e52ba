-- clock.lua: the limiter's own time, and how numbers and hashes are read and written.
--- @include constants
-- Gives: limiter_now(key, given), in seconds; seconds(value), micros(value); hash(key).
--
-- It is Redis's TIME, except that it never goes back: when somebody sets the server's clock back, `ahead` grows by the
-- difference, and every instant that is already in the schedule keeps its meaning. The hash `clock` holds `seen` (the
-- latest time told) and `ahead`; all limiters of a model share it. `given` stands in for TIME in tests.

local function limiter_now(clock, given)
  local wall
  if given ~= '' then
    wall = tonumber(given)
  else
    local t = redis.call('TIME')
    wall = tonumber(t[1]) + tonumber(t[2]) / 1000000
  end
  local known = redis.call('HMGET', clock, 'seen', 'ahead')
  local seen, ahead = tonumber(known[1] or 0), tonumber(known[2] or 0)
  local now = wall + ahead
  if now < seen then
    ahead, now = seen - wall, seen
  end
  redis.call('HSET', clock, 'seen', string.format('%.6f', now), 'ahead', string.format('%.6f', ahead))
  redis.call('EXPIRE', clock, LIMITER_TTL_S)
  return now
end

local function seconds(value)
  return string.format('%.6f', value)
end

local function micros(value)
  return string.format('%.0f', value * 1000000)
end

local function hash(key)
  local fields, flat = {}, redis.call('HGETALL', key)
  for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
  return fields
end
