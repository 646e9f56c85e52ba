-- counts.lua: what was taken in this minute and the last one, of one limiter and of its organisation's.
--- @include constants clock
-- Gives: turn_minute(level, now), counted(level, name), write_counts(key, level, requests, tokens).
--
-- A level is such a limiter's hash, as it was read: `requests`, `tokens` and what others took of both (`foreign_...`), each
-- beside `last_...`, of the minute before `minute`.

local counters = { 'requests', 'tokens', 'foreign_requests', 'foreign_tokens' }

local function turn_minute(level, now)
  local minute = math.floor(now / 60)
  local its_minute = tonumber(level.minute or -1)
  if its_minute == minute then return end
  for _, name in ipairs(counters) do
    level['last_' .. name] = its_minute == minute - 1 and level[name] or 0
    level[name] = 0
  end
  level.minute = minute
end

local function counted(level, name)
  return tonumber(level[name] or 0) + tonumber(level['last_' .. name] or 0)
end

local function write_counts(key, level, requests, tokens)
  level.requests = math.max(0, tonumber(level.requests) + requests)
  level.tokens = tonumber(level.tokens) + tokens
  local fields = { 'minute', level.minute }
  for _, name in ipairs(counters) do
    for _, field in ipairs({ name, 'last_' .. name }) do
      fields[#fields + 1] = field
      fields[#fields + 1] = level[field] or 0
    end
  end
  redis.call('HSET', key, unpack(fields))
  redis.call('EXPIRE', key, LIMITER_TTL_S)
end
