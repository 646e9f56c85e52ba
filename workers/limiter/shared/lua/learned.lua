-- learned.lua: which of the limits that answers' headers state are believed.
-- Gives: learned_limits(key, state, ask, dims, now) = "rpm=500,tpm=30000".
--
-- One answer may be odd, so a limit that is told once stops nobody for long:
--
-- - A limit below half of the one that is believed or stated, or of what was used in this minute or the last, counts from
--   its second telling on, a second and more after the first. So does a limit of a day where none is stated.
-- - Where nothing was known, the first limit that is told counts at once, but any higher one takes its place, and it is
--   forgotten when calls have ended for a minute without another answer that tells it.
-- - What was told twice is kept: the lowest. A higher one holds when the lower has not been told for ten minutes.
--
-- The state holds `told:<field>` = "limit at", what is believed; `sure:<field>` = the limit, where it was told twice; and
-- `doubt:<field>` = "limit at", what was told once and not believed. (A process of an older version writes `told` alone, and
-- does not say which fields it `learns`: it knows of three.)

local apart_s, unsure_s, kept_s = 1, 60, 600
local dimension_of = { rpm = 'requests', tpm = 'tokens', input_tpm = 'input', output_tpm = 'output' }

-- What is known without an answer's help: the limit that is stated, or as much as was used, with what is `said` of it
-- along with the header.
local function reference_of(state, dims, max_day, said, field)
  if field == 'rpd' then return max_day > 0 and max_day or math.huge end
  local name = dimension_of[field]
  -- Of input and output alone nobody keeps count.
  local known = math.max(tonumber(state[name] or 0) + (said[name] or 0), tonumber(state['last_' .. name] or 0))
  for _, dim in ipairs(dims) do
    if dim.name == name then known = math.max(known, dim.limit) end
  end
  return known
end

local function limit_and_instant(text)
  local limit, at = string.match(text or '', '^(%S+) (%S+)$')
  return tonumber(limit), tonumber(at)
end

-- The limit that is believed of one field after these headers; nil = none.
local function learned_limit(key, state, field, headers, reference, ended, now)
  local limit, at = limit_and_instant(state['told:' .. field])
  local doubt, doubt_at = limit_and_instant(state['doubt:' .. field])
  local is_sure = limit ~= nil and tonumber(state['sure:' .. field]) == limit
  local was_stated = false
  if doubt and now - doubt_at > kept_s then doubt = nil end

  for _, header in ipairs(headers) do
    if header.tells == field then
      was_stated = true
      local lower = header.limit
      if limit and lower == limit then
        is_sure = is_sure or now - at >= apart_s
        if is_sure then at = now end
      elseif limit and lower > limit then
        if not is_sure or now - at > kept_s then limit, at, is_sure = lower, now, false end
      elseif 2 * lower >= (limit or reference) then
        limit, at, is_sure = lower, now, limit ~= nil
      elseif doubt and now - doubt_at >= apart_s then
        limit, at, is_sure, doubt = math.max(lower, doubt), now, true, nil
      elseif not doubt then
        doubt, doubt_at = lower, now
      end
    end
  end
  if limit and not is_sure and not was_stated and ended > 0 and now - at > unsure_s then limit = nil end

  local function keep(name, text)
    if text and text ~= state[name] then redis.call('HSET', key, name, text) end
    if not text and state[name] then redis.call('HDEL', key, name) end
  end
  keep('told:' .. field, limit and string.format('%.0f %.0f', limit, at))
  keep('sure:' .. field, is_sure and limit and string.format('%.0f', limit))
  keep('doubt:' .. field, doubt and string.format('%.0f %.0f', doubt, doubt_at))
  return limit
end

-- Those of all fields, as they are kept for all processes.
local function learned_limits(key, state, ask, dims, now)
  local said = { requests = ask.went_free, tokens = 0 }
  for _, refund in ipairs(ask.refunds) do said.tokens = said.tokens - refund[2] - refund[3] end
  local found = {}
  for _, field in ipairs(ask.learns or { 'rpm', 'tpm', 'rpd' }) do
    local reference = reference_of(state, dims, ask.requests_per_day, said, field)
    local limit = learned_limit(key, state, field, ask.headers, reference, ask.settled, now)
    if limit then found[#found + 1] = string.format('%s=%.0f', field, limit) end
  end
  return table.concat(found, ',')
end
