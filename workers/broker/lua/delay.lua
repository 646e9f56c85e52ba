-- delay.lua: keep a message that is not due yet in Redis, not in a worker's memory.
--
-- A job that waits for an equal one's call is due when all that wait for it are, or at its own deadline; the flight
-- remembers where it lies, for whoever ends it. Has it ended meanwhile, the job goes back into its queue.
--
--- @include message flight
--
-- KEYS  1 unacked, 2 unacked_index, 3 leases, 4 the queue's delayed messages (zset, message -> ms when it is due),
--       5 the flight that it waits for (hash), or any key that is not there, 6 suspected (zset, job id or tag -> ms)
-- ARGV  1 a JSON map:
--       tag
--       due_ms         when it is due, by Redis's clock
--       now_ms         what Redis's clock showed when that was reckoned: if it has been set back since, the message is due
--                      by as much earlier
--       records        prefix of the jobs' records
--       is_suspected   whether its call may have been paid for
--       memory         what the job must not forget until then (base64), or ''
--       follows        the token of the flight that it waits for, or ''
--       called         the id of its job if that has made a call, or ''
--       queue          of the message; prefix, of all keys; lists, as list_of takes them
-- Returns 1, or 0 if the lease was lost. Then its message waits in its queue, of a Redis that came back without its last
-- second, or is another worker's: it knows nothing of the call, so a mark flags its next delivery.

local ask = cjson.decode(ARGV[1])
local record = redis.call('HGET', KEYS[1], ask.tag)
if not record then
  if ask.called ~= '' then suspect(KEYS[6], ask.called) end
  return 0
end
local raw = unpacked(record)
if ask.is_suspected then
  local deliveries = history(raw)
  raw = with_history(raw, deliveries, 1)
end
if ask.memory ~= '' then raw = with_memory(raw, ask.memory) end

local due = ask.due_ms - math.max(0, ask.now_ms - now_ms())
local function wait_for(flight)
  if flight.token ~= ask.follows then
    redis.call('RPUSH', list_of(raw, ask.prefix .. ask.queue, ask.lists), raw)
    return
  end
  local at = score_of(due < flight.due and math.floor(due) + flight.due % 1 or flight.due)
  redis.call('HSET', KEYS[5], 'at:' .. at .. ':' .. ask.queue, 1)
  redis.call('ZADD', KEYS[4], at, raw)
end

if ask.follows ~= '' then
  wait_for(read_flight(KEYS[5]))
else
  redis.call('ZADD', KEYS[4], string.format('%.0f', due), raw)
end
mark_queued(raw, ask.records)
forget(KEYS[1], KEYS[2], KEYS[3], ask.tag)
return 1
