-- claim.lua: say which of these jobs wait, so that one worker records their ends, not each that hears of it.
--
-- KEYS  for each job its record
-- ARGV  1 how long a claim holds (ms): then the worker that made it has died
-- Returns for each job its state ("" = it has no record, "claimed" = another worker is at it), its group and its task.

redis.call('DEL', 'pm:none') -- see store.lua

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local reply = {}
for _, record in ipairs(KEYS) do
  local state, group, task, claimed = unpack(redis.call('HMGET', record, 'state', 'group', 'task', 'ending'))
  if state == 'queued' then
    local ago = now - tonumber(claimed or 0)
    if ago >= 0 and ago <= tonumber(ARGV[1]) then
      state = 'claimed'
    else
      redis.call('HSET', record, 'ending', now)
    end
  end
  reply[#reply + 1], reply[#reply + 2], reply[#reply + 3] = state or '', group or '', task or ''
end
return reply
