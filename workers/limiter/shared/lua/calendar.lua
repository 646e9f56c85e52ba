-- calendar.lua: what is sold of the limits that stand above several keys.
--- @include clock places
-- Gives: calendar_of(key, fields, dimensions, now) = { place, sell, settle, give_back, write }.
--
-- Time is cut into bins, and each is sold up to its capacity: of requests one in each 1 / rate seconds, of tokens half the
-- burst in each half burst / rate. So no time T holds more than rate * T and one request; or the burst of tokens, or the
-- largest lump.
--
-- The hash `key` holds `<dimension>:<bin>` = sold and `width:<dimension>`, beside the organisation's counters.

-- What was sold in bins of another width, into bins of this one. What is too much for one of them, because the limit is
-- lower now, fills the next ones: it goes all the same, and nothing is sold beside it.
local function resize(sold, width, bins)
  local amounts, numbers = {}, {}
  for bin, amount in pairs(sold) do
    local number = math.floor(bin * width / bins.width + 0.000001)
    if not amounts[number] then numbers[#numbers + 1] = number end
    amounts[number] = (amounts[number] or 0) + amount
  end
  table.sort(numbers)
  local resized, next_free = {}, -math.huge
  for _, number in ipairs(numbers) do
    local bin, amount = math.max(number, next_free), amounts[number]
    while amount > 0.000001 do
      local part = math.min(amount, bins.capacity - (resized[bin] or 0))
      resized[bin] = (resized[bin] or 0) + part
      amount = amount - part
      if resized[bin] >= bins.capacity - 0.000001 then bin = bin + 1 end
    end
    next_free = bin
  end
  return resized
end

local function calendar_of(key, fields, dimensions, now)
  local by_name, all, changed, passed, widths = {}, {}, {}, {}, {}
  for position, dim in ipairs(dimensions) do
    all[position] = bins_of(dim)
    by_name[dim.name] = all[position]
    widths[dim.name] = tonumber(fields['width:' .. dim.name] or all[position].width)
  end
  for field, value in pairs(fields) do
    local name, bin = string.match(field, '^(%a+):(%d+)$')
    local bins = by_name[name]
    local begins = bins and tonumber(bin) * widths[name]
    -- Bins of a day ahead were numbered by a width that nobody wrote down.
    if bins and begins + widths[name] >= now and begins < now + 86400 then
      bins.sold[tonumber(bin)] = tonumber(value)
    elseif bins then
      passed[#passed + 1] = field
    end
  end

  local function change(bins, bin, amount)
    bins.sold[bin] = (bins.sold[bin] or 0) + amount
    changed[string.format('%s:%.0f', bins.name, bin)] = bins.sold[bin]
  end

  for _, bins in ipairs(all) do
    local width = string.format('%.17g', bins.width)
    if fields['width:' .. bins.name] ~= width then
      local before = bins.sold
      if math.abs(widths[bins.name] - bins.width) > 1e-9 then
        bins.sold = {}
        for bin in pairs(before) do passed[#passed + 1] = string.format('%s:%.0f', bins.name, bin) end
        for bin, amount in pairs(resize(before, widths[bins.name], bins)) do change(bins, bin, amount) end
      end
      changed['width:' .. bins.name] = width
    end
  end

  local calendar = {}

  -- The first instant from `from` on at which the cost fits everywhere, and its places.
  function calendar.place(cost, from)
    local at, places = from, {}
    local moved = true
    while moved do
      moved = false
      for position, bins in ipairs(all) do
        if not places[position] or places[position].until_s < at - 0.0000005 then
          places[position] = find_place(bins, cost[bins.name], at, now)
          if places[position].at > at then at, moved = places[position].at, true end
        end
      end
    end
    return at, places
  end

  function calendar.sell(places)
    for _, place in ipairs(places) do
      local bin, missing = place.first, place.amount
      while missing > 0 do
        local part = math.min(missing, bin == place.first and place.head or left(place.bins, bin))
        change(place.bins, bin, part)
        bin, missing = bin + 1, missing - part
      end
    end
  end

  -- What calls have left of their reservations frees the bins to come, the nearest first; what they took beyond fills them.
  function calendar.settle(back)
    for _, bins in ipairs(all) do
      local amount, last = back[bins.name], math.floor(now / bins.width)
      local bin = last
      for each in pairs(bins.sold) do last = math.max(last, each) end
      while amount > 0 and bin <= last do
        local part = math.min(amount, bins.sold[bin] or 0)
        if part > 0 then change(bins, bin, -part) end
        bin, amount = bin + 1, amount - part
      end
      while amount < 0 do
        local part = math.min(-amount, left(bins, bin))
        if part > 0 then change(bins, bin, part) end
        bin, amount = bin + 1, amount + math.max(0, part)
      end
    end
  end

  -- A request's instant comes back unused.
  function calendar.give_back(instant)
    local bins = by_name.requests
    if not bins then return end
    local bin = math.floor(instant / bins.width + 0.5)
    if math.abs(bin * bins.width - instant) < 0.000003 and (bins.sold[bin] or 0) >= 1 then change(bins, bin, -1) end
  end

  function calendar.write()
    for _, field in ipairs(passed) do redis.call('HDEL', key, field) end
    for field, value in pairs(changed) do redis.call('HSET', key, field, value) end
  end

  return calendar
end
