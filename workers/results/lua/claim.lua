-- claim.lua: say which of these jobs wait, so that one worker records their ends, not each that hears of it.
--
--- @include constants when_full time
--
-- KEYS  for each job its record
-- Returns for each job its state ("" = it has no record, "claimed" = another worker is at it), its group and its task.

local now = now_ms()
local reply = {}
for _, record in ipairs(KEYS) do
  local state, group, task, claimed = unpack(redis.call('HMGET', record, 'state', 'group', 'task', 'ending'))
  if state == QUEUED then
    local ago = now - tonumber(claimed or 0)
    if ago >= 0 and ago <= CLAIM_MS then
      state = 'claimed'
    else
      redis.call('HSET', record, 'ending', now)
    end
  end
  reply[#reply + 1], reply[#reply + 2], reply[#reply + 3] = state or '', group or '', task or ''
end
return reply
