-- hand_back.lua: put messages that this worker holds back at the front of their queues.
--
--- @include message
--
-- A message whose lease Redis does not know waits in its queue, or is another worker's: a mark flags its next delivery, if
-- its job had started.
--
-- KEYS  1 unacked, 2 unacked_index, 3 leases, 4 suspected (zset, job id or tag -> ms when the mark ends)
-- ARGV  1 a JSON map: lists, as list_of takes them; prefix, of all keys; records, prefix of the jobs' records
--       then for each message its tag; 1 if its job had started (its call may have been paid for), 2 if besides the
--       delivery counts as one that ended badly, 0 otherwise; and the id of a job that had started, or ''
-- Returns how many were put back.

local unacked, index, leases, suspected = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local ask = cjson.decode(ARGV[1])

local put_back = 0
for i = 2, #ARGV, 3 do
  local tag, started, counted, id = ARGV[i], ARGV[i + 1] ~= '0', ARGV[i + 1] == '2', ARGV[i + 2]
  local record = redis.call('HGET', unacked, tag)
  local raw, queue
  if record then raw, queue = unpacked(record) end
  if raw then
    if started then
      local deliveries = history(raw)
      raw = with_history(raw, deliveries + (counted and 1 or 0), 1)
    end
    mark_queued(raw, ask.records)
    redis.call('RPUSH', list_of(raw, ask.prefix .. queue, ask.lists), raw)
    put_back = put_back + 1
  elseif started and id ~= '' then
    suspect(suspected, id)
  end
  forget(unacked, index, leases, tag)
end
return put_back
