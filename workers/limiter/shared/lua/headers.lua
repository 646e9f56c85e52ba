-- headers.lua: what rate headers tell of others who use the same key.
--- @include counts
-- Gives: note_others(key, state, dims, headers, lost_until, now), which returns the requests of today that they have counted.
--
-- They only ever slow us down: where the provider has counted more than we sent, somebody else uses the key, and takes from
-- the schedule as we do; what was seen of it is known from then on. After a lost state the rest may as well be our own
-- calls, which nobody remembers.

local function used_today_by(key, state, header, now)
  -- Of the two latest answers of the day the lower counts: one odd number must not end it.
  local its_day, its_count = string.match(state.told_today or '', '^(%S+) (%S+)$')
  local count, today = header.limit - header.remaining, string.format('%.0f', math.floor(now / 86400))
  redis.call('HSET', key, 'told_today', today .. ' ' .. string.format('%.0f', count))
  return its_day == today and math.min(count, tonumber(its_count)) or 0
end

local function note_others(key, state, dims, headers, lost_until, now)
  local used_today = 0
  for _, header in ipairs(headers) do
    if header.tells == 'rpd' then
      used_today = used_today_by(key, state, header, now)
    elseif (header.tells == 'rpm' or header.tells == 'tpm') and now >= lost_until + 120 then
      -- A bucket's `remaining` is its level, so only what `reset` confirms counts as used.
      local used = math.min(header.limit - header.remaining, header.reset_s * header.limit / 60)
      local name, others = header.name, 'foreign_' .. header.name
      local known = counted(state, name) + counted(state, others)
      if used > known + 2 + 0.02 * header.limit then
        state[others] = tonumber(state[others] or 0) + used - known
        for _, dim in ipairs(dims) do
          if dim.name == name then
            -- No later than the pace would have used up by the reset what remains.
            local latest = now + header.reset_s - header.remaining / dim.rate
            dim.tat = math.max(dim.tat, math.min(math.max(dim.tat, now) + (used - known) / dim.rate, latest))
          end
        end
      end
    end
  end
  return used_today
end
