-- verify.lua: acknowledge messages whose results may be lost: a replica took over, or Redis came back without its last
-- second. A message whose result is here is acknowledged. Another goes back to its queue, flagged: its call was paid
-- for. One that is not under this lease here waits in its queue, or is somebody else's; a mark flags its next delivery.
--
--- @include message result
--
-- KEYS  1 unacked, 2 unacked_index, 3 leases, 4 suspected (zset, job id or tag -> ms when the mark ends)
-- ARGV  1 a JSON map: lists, as list_of takes them; prefix, of all keys; records, results, prefixes of the jobs' records and
--       of the results
--       then for each message its tag and its job's id
-- Returns how many had no result.

local unacked, index, leases, suspected = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local ask = cjson.decode(ARGV[1])

local missing = 0
for i = 2, #ARGV, 2 do
  local tag, id = ARGV[i], ARGV[i + 1]
  if not has_ended(ask.results .. id) then
    missing = missing + 1
    local record = redis.call('HGET', unacked, tag)
    local raw, queue
    if record then raw, queue = unpacked(record) end
    if raw then
      local deliveries = history(raw)
      raw = with_history(raw, deliveries, 1)
      mark_queued(raw, ask.records)
      redis.call('RPUSH', list_of(raw, ask.prefix .. queue, ask.lists), raw)
    else
      suspect(suspected, id)
    end
  end
  forget(unacked, index, leases, tag)
end
return missing
