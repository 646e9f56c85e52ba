-- hand_back.lua: put messages that this worker holds back at the front of their queues.
--
-- KEYS  1 unacked, 2 unacked_index, 3 leases
-- ARGV  1 priority steps, 2 separator, 3 key prefix; then for each message its tag and 1 if its job had started (its
--       call may have been paid for)
-- Returns how many were put back.

local unacked, index, leases = KEYS[1], KEYS[2], KEYS[3]
local steps = {}
for step in string.gmatch(ARGV[1], '%d+') do
  steps[#steps + 1] = tonumber(step)
end

local put_back = 0
for i = 4, #ARGV, 2 do
  local tag, started = ARGV[i], ARGV[i + 1] == '1'
  local record = redis.call('HGET', unacked, tag)
  local raw, queue
  if record then raw, queue = unpacked(record) end
  if raw then
    if started then raw = with_history(raw, history(raw), 1) end
    redis.call('RPUSH', list_of(raw, ARGV[3] .. queue, steps, ARGV[2]), raw)
    put_back = put_back + 1
  end
  forget(unacked, index, leases, tag)
end
return put_back
