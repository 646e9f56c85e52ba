-- exchange.lua: acknowledge many messages and take many, in one round trip.
--
-- A message leaves its list and becomes a lease in the same script: there is no moment in which a crash loses it. Each
-- claim has a fence, a number never given twice; it is the message's delivery tag from then on.
--
-- KEYS  1 unacked (hash, kombu's), 2 unacked_index (zset, kombu's), 3 leases (zset, tag -> ms when it ends), 4 fence
--       (counter); then for each queue its delayed messages (zset) and its lists, most urgent first
-- ARGV  1 messages to take at most, 2 bytes to take at most, 3 lease (ms), 4 lists a queue, 5 priority steps ("0,3,6,9"),
--       6 separator, 7 queues, 8 jobs that have started; then the queues' names, each as in JSON, the records of the
--       jobs that have started, and the tags to acknowledge
-- Returns {now (ms), ms when the next delayed message is due or -1, tag, number of the queue, message, tag, ...}

local unacked, index, leases, fence = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local room, bytes, lease_ms, lists = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local queues, started = tonumber(ARGV[7]), tonumber(ARGV[8])
local now = now_ms()

for i = 9 + queues, 8 + queues + started do
  -- Jobs of stock producers have no record, and need none.
  if redis.call('EXISTS', ARGV[i]) == 1 then
    redis.call('HSET', ARGV[i], 'state', 'running', 'started_at', string.format('%.3f', now / 1000))
  end
end
for i = 9 + queues + started, #ARGV do
  forget(unacked, index, leases, ARGV[i])
end

local steps = {}
for step in string.gmatch(ARGV[5], '%d+') do
  steps[#steps + 1] = tonumber(step)
end

local function key_of(queue, list)
  return KEYS[4 + (queue - 1) * (lists + 1) + 1 + list]
end

local next_due = -1
for queue = 1, queues do
  local delayed = key_of(queue, 0)
  local due = redis.call('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, 100)
  for _, raw in ipairs(due) do
    redis.call('RPUSH', list_of(raw, key_of(queue, 1), steps, ARGV[6]), raw)
    redis.call('ZREM', delayed, raw)
  end
  local first = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')
  if first[2] and (next_due < 0 or tonumber(first[2]) < next_due) then
    next_due = tonumber(first[2])
  end
end

local reply = { now, next_due }
for list = 1, lists do
  for queue = 1, queues do
    while room > 0 and bytes > 0 do
      local raw = redis.call('RPOP', key_of(queue, list))
      if not raw then break end
      local tag = 'pm-' .. redis.call('INCR', fence)
      redis.call('HSET', unacked, tag, '[' .. raw .. ', "", ' .. ARGV[8 + queue] .. ']')
      redis.call('ZADD', leases, now + lease_ms, tag)
      redis.call('ZADD', index, math.floor(now / 1000), tag)
      reply[#reply + 1], reply[#reply + 2], reply[#reply + 3] = tag, queue, raw
      room, bytes = room - 1, bytes - #raw
    end
  end
end
return reply
