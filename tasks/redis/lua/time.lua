-- time.lua: Redis's clock.
-- Gives: now_us(); now_ms(); now_s(), a text with six decimals, because Lua writes 14 digits of a number.

local function now_us()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

local function now_ms()
  return math.floor(now_us() / 1000)
end

local function now_s()
  local time = redis.call('TIME')
  return string.format('%d.%06d', time[1], time[2])
end
