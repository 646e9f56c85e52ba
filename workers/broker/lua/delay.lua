-- delay.lua: keep a message that is not due yet in Redis, not in a worker's memory.
--
--- @include message
--
-- KEYS  1 unacked, 2 unacked_index, 3 leases, 4 the queue's delayed messages (zset, message -> ms when it is due)
-- ARGV  1 a JSON map:
--       tag
--       due_ms         when it is due, by Redis's clock
--       now_ms         what Redis's clock showed when that was reckoned: if it has been set back since, the message is due
--                      by as much earlier
--       records        prefix of the jobs' records
--       is_suspected   whether its call may have been paid for
--       memory         what the job must not forget until then (base64), or ''
-- Returns 1, or 0 if the lease was lost.

local ask = cjson.decode(ARGV[1])
local record = redis.call('HGET', KEYS[1], ask.tag)
if not record then return 0 end
local raw = unpacked(record)
if ask.is_suspected then
  local deliveries = history(raw)
  raw = with_history(raw, deliveries, 1)
end
if ask.memory ~= '' then raw = with_memory(raw, ask.memory) end
redis.call('ZADD', KEYS[4], string.format('%.0f', ask.due_ms - math.max(0, ask.now_ms - now_ms())), raw)
mark_queued(raw, ask.records)
forget(KEYS[1], KEYS[2], KEYS[3], ask.tag)
return 1
