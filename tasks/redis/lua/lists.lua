-- lists.lua: in which of a queue's lists a message belongs.
-- Gives: priority_of(raw); list_of(raw, queue, lists).

-- Its place in the producer's properties, which stand after its headers: 0 is the most urgent.
local function priority_of(raw)
  return tonumber(string.match(raw, '.*"priority": ?(%d+)') or 0)
end

-- The list that a message came from: kombu keeps one for each priority step, the first without a suffix. `lists` is
-- { steps, separator }.
local function list_of(raw, queue, lists)
  local priority = priority_of(raw)
  local step = 0
  for _, candidate in ipairs(lists.steps) do
    if candidate <= priority then step = candidate end
  end
  return step == 0 and queue or queue .. lists.separator .. step
end
