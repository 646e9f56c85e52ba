-- recent.lua: what was let through of late, of a model whose limit of requests nobody knows.
--- @include clock
-- Gives: recent_of(state) = { add(at, requests), sum(from, to), room_at(at, most), text(from) }.
--
-- The state holds `recent` = "bin:requests ...", by the instants of the slots. A bin may be negative: what was refused, or
-- went unused, is heard later than what was sold.

local recent_bin_s = 2

local function recent_of(state)
  local recent, bins = {}, {}
  for bin, requests in string.gmatch(state.recent or '', '(%d+):(-?%d+)') do bins[tonumber(bin)] = tonumber(requests) end

  function recent.add(at, requests)
    local bin = math.floor(at / recent_bin_s)
    bins[bin] = (bins[bin] or 0) + requests
  end

  -- Between two instants; of the first bin as much as lies behind the first of them, the last bin is all of it.
  function recent.sum(from, to)
    local sum, last = 0, math.ceil(to / recent_bin_s)
    for bin, requests in pairs(bins) do
      if bin < last then sum = sum + requests * math.min(1, math.max(0, bin + 1 - from / recent_bin_s)) end
    end
    return math.max(0, sum)
  end

  -- The first instant at or after `at` before which less than `most` went in a minute. A bin counts until all of it is too
  -- old.
  function recent.room_at(at, most)
    local sum, order = 0, {}
    for bin, requests in pairs(bins) do
      if (bin + 1) * recent_bin_s + 60 > at then
        sum, order[#order + 1] = sum + requests, bin
      end
    end
    table.sort(order)
    for _, bin in ipairs(order) do
      if sum < most then return at end
      sum, at = sum - bins[bin], math.max(at, (bin + 1) * recent_bin_s + 60)
    end
    return at
  end

  function recent.text(from)
    local words = {}
    for bin, requests in pairs(bins) do
      if (bin + 1) * recent_bin_s > from and requests ~= 0 then words[#words + 1] = bin .. ':' .. requests end
    end
    return table.concat(words, ' ')
  end

  return recent
end
