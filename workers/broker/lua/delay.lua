-- delay.lua: keep a message that is not due yet in Redis, not in a worker's memory.
--
--- @include message
--
-- KEYS  1 unacked, 2 unacked_index, 3 leases, 4 the queue's delayed messages (zset, message -> ms when it is due)
-- ARGV  1 tag, 2 when it is due (ms, Redis's clock), 3 prefix of the jobs' records, 4 what Redis's clock showed (ms) when
--       that was reckoned: if it has been set back since, the message is due by as much earlier; 5: 1 if its call may
--       have been paid for; 6: what the job must not forget until then (base64), or ''
-- Returns 1, or 0 if the lease was lost.

local record = redis.call('HGET', KEYS[1], ARGV[1])
if not record then return 0 end
local raw = unpacked(record)
if ARGV[5] == '1' then
  local deliveries = history(raw)
  raw = with_history(raw, deliveries, 1)
end
if ARGV[6] ~= '' then raw = with_memory(raw, ARGV[6]) end
redis.call('ZADD', KEYS[4], ARGV[2] - math.max(0, ARGV[4] - now_ms()), raw)
mark_queued(raw, ARGV[3])
forget(KEYS[1], KEYS[2], KEYS[3], ARGV[1])
return 1
