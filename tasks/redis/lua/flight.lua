-- flight.lua: what the scripts know of a call that is under way for equal prompts (redis_keys.flight).
--- @include constants time
-- Gives: read_flight(key), numbers as numbers and nil for what is missing; score_of(due); keep_flight(key, until_ms);
--        token_of(process, number), of the lead that a process's question of this number brought; row_of(columns, n).

local function read_flight(key)
  local leader, token, rank, ends, parked, due, began, landed_at, landed_token = unpack(redis.call('HMGET', key,
    'leader', 'token', 'rank', 'ends', 'parked', 'due', 'began', 'landed_at', 'landed_token'))
  return {
    leader = leader or nil,
    token = token or nil,
    rank = tonumber(rank or 0),
    ends = tonumber(ends or 0),
    is_parked = parked == '1',
    due = tonumber(due or nil),
    began = tonumber(began or nil),
    landed_at = tonumber(landed_at or nil),
    landed_token = landed_token or nil,
  }
end

-- Until the year 2039 a double has 12 bits for the fraction of such a millisecond.
local function score_of(due)
  return string.format('%.17g', due)
end

local function keep_flight(key, until_ms)
  redis.call('PEXPIREAT', key, string.format('%.0f', until_ms + FLIGHT_TTL_S * 1000))
end

local function token_of(process, number)
  return string.format('%s-%d', process, number)
end

-- The n-th of what is told in columns, as a table.
local function row_of(columns, n)
  local row = {}
  for name, column in pairs(columns) do
    row[name] = column[n]
  end
  return row
end
