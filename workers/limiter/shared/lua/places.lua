-- places.lua: where an amount fits into the bins of a calendar.
-- Gives: bins_of(dim) = { name, capacity, width, sold }; left(bins, bin); find_place(bins, amount, from, now) = { at, until_s,
--        bins, first, head, amount }.
--
-- An amount that fits into one bin goes at any instant of it. A lump takes part of a bin, whole bins and part of another, and
-- goes when its place has lasted for as long as a burst takes, the part of the first bin counted back from that bin's end
-- (the whole lump, if that is less): what was sold before it went earlier, so less of a burst would come too near to
-- that, and more too near to the next lump. Whole bins, because what others have in them may go at any of their instants.

local function bins_of(dim)
  local capacity = dim.name == 'requests' and 1 or dim.burst / 2
  return { name = dim.name, capacity = capacity, width = capacity / dim.rate, sold = {} }
end

local function left(bins, bin) return bins.capacity - (bins.sold[bin] or 0) end

-- Where an amount fits that may go at `from` at the earliest: its instant, how long the place holds, its first bin and
-- how much it takes of that.
local function find_request(bins, amount, from)
  -- A request goes when its bin begins, or two could be nearer than 1 / rate. Instants are told in microseconds.
  local bin = math.ceil((from - 0.000002) / bins.width)
  while left(bins, bin) < amount do bin = bin + 1 end
  return { at = bin * bins.width, until_s = bin * bins.width, bins = bins, first = bin, head = amount, amount = amount }
end

local function fits_from(bins, bin, amount)
  while amount > left(bins, bin) do
    if (bins.sold[bin] or 0) > 0.000001 then return false end
    amount = amount - bins.capacity
    bin = bin + 1
  end
  return true
end

local function find_tokens(bins, amount, from, now)
  local burst, rate = 2 * bins.capacity, bins.capacity / bins.width
  -- The place of a lump that goes at `from` can begin one bin before.
  local first = math.max(math.floor(now / bins.width), math.floor(from / bins.width) - 1)
  while true do
    local begins, room = first * bins.width, left(bins, first)
    local place = { bins = bins, first = first, amount = amount }
    if amount <= room then
      place.head, place.at, place.until_s = amount, math.max(from, begins), begins + bins.width
    else
      -- What others have in the first bin may go as late as this.
      place.head = math.min(room, burst - (from - begins) * rate - (bins.sold[first] or 0))
      place.at = math.max(from, begins + (math.min(amount, burst) - place.head) / rate)
      place.until_s = begins + (burst - place.head) / rate
    end
    if place.head > 0.000001 and place.until_s > from - 0.0000005
      and fits_from(bins, first + 1, amount - place.head) then
      return place
    end
    first = first + 1
  end
end

local function find_place(bins, amount, from, now)
  if amount <= 0 then return { at = from, until_s = math.huge, bins = bins, amount = 0 } end
  return (bins.name == 'requests' and find_request or find_tokens)(bins, amount, from, now)
end
