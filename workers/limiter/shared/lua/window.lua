-- window.lua: what the last minute has taken of the limits of tokens.
--- @include constants clock
-- Gives: window_of(key, dimensions, width, reserve, now) = { presume, settle, place, sell, write }.
--
-- A schedule alone knows what it sold, not what is left of it in a provider's window of a minute: what calls under way
-- will have taken is unknown. Here that is known but for the calls under way now. Time is cut into bins; a slot is charged
-- to its bin with what is reserved, and when the call is settled, the same bin is put right.
--
-- A provider sees a request up to J after its instant, so what it sees at `at` or later together with that of `at` has
-- instants after at - `span`, a minute and J. A slot may be sold at `at` if all that is charged after that, the later slots
-- too, leaves room for its cost; else it is moved to where enough of the oldest bins have left.
--
-- `reserve` is kept free beside the cost: what one call may take beyond its reservation. Where many are under way, others
-- that take less make up for it; where the window is full but for one, nothing does. It is a small share of the limit at
-- most, and an empty window has room for any request.
--
-- The hash `key` holds `<dimension>:<bin>` = tokens charged.

local most_reserve = 0.02

local function window_of(key, dimensions, width, reserve, now)
  local by_name, changed, passed = {}, {}, {}
  for _, dim in ipairs(dimensions) do
    if dim.span > 0 then
      local oldest = math.floor((now - dim.span) / width)
      by_name[dim.name] = {
        name = dim.name, limit = dim.limit, burst = dim.burst, span = dim.span,
        charged = {}, sum = 0, oldest = oldest, newest = oldest,
      }
    end
  end
  local window, is_empty = {}, true

  local function charge(of, bin, amount)
    if bin < of.oldest then return end
    local after = math.max(0, (of.charged[bin] or 0) + amount)
    of.sum = of.sum + after - (of.charged[bin] or 0)
    of.charged[bin] = after
    of.newest = math.max(of.newest, bin)
    changed[string.format('%s:%.0f', of.name, bin)] = after
  end

  if next(by_name) then
    for field, value in pairs(hash(key)) do
      is_empty = false
      local name, bin = string.match(field, '^(%a+):(%d+)$')
      local of = by_name[name]
      bin = tonumber(bin)
      -- One of a day ahead was numbered by another width, by a process of another version.
      if of and bin >= of.oldest and bin * width < now + 86400 then
        of.charged[bin] = tonumber(value)
        of.sum = of.sum + of.charged[bin]
        of.newest = math.max(of.newest, bin)
      elseif of then
        passed[#passed + 1] = field
      end
    end
  end

  -- Nobody knows what was sold of a schedule that was lost: it is taken for a full window that leaves evenly.
  function window.presume()
    if not is_empty then return end
    local last = math.floor(now / width)
    for _, of in pairs(by_name) do
      for bin = of.oldest, last do charge(of, bin, of.limit / of.span * width) end
      charge(of, last, of.burst)
    end
  end

  function window.settle(bin, back)
    for name, of in pairs(by_name) do
      if back[name] ~= 0 then charge(of, bin, -back[name]) end
    end
  end

  -- The first instant from `at` on at which the cost fits. None is earlier than the one before it, or it would count less.
  function window.place(cost, at)
    for name, of in pairs(by_name) do
      at = math.max(at, of.reached or at)
      local room = of.limit - cost[name] - (name == 'input' and 0 or math.min(reserve, most_reserve * of.limit))
      while of.oldest <= of.newest do
        local leaves = (of.oldest + 1) * width + of.span
        if leaves > at then
          if of.sum <= room then break end
          at = leaves
        end
        of.sum = of.sum - (of.charged[of.oldest] or 0)
        of.oldest = of.oldest + 1
      end
      of.reached = at
    end
    return at
  end

  function window.sell(cost, at)
    local bin = math.floor(tonumber(micros(at)) / 1000000 / width)
    for name, of in pairs(by_name) do charge(of, bin, cost[name]) end
  end

  function window.write()
    for field, charged in pairs(changed) do redis.call('HSET', key, field, charged) end
    for _, field in ipairs(passed) do redis.call('HDEL', key, field) end
    if next(changed) then redis.call('EXPIRE', key, LIMITER_WINDOW_TTL_S) end
  end

  return window
end
