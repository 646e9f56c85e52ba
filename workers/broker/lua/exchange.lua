-- exchange.lua: acknowledge many messages and take many, in one round trip.
--
-- A message leaves its list and becomes a lease in the same script: there is no moment in which a crash loses it. Each
-- claim has a fence, a number never given twice; with a prefix it is the message's delivery tag from then on. Redis's
-- clock (us) is its lower bound, so that a Redis that came back without its last second, or without anything, does not
-- give the numbers of claims that workers still hold.
--
-- A job may have been cancelled while nobody was there to hear it, or so long ago that the workers have forgotten: the
-- reply names those among the jobs that were taken. One whose end is recorded already is not taken: its message goes. A
-- delayed message may outlive the mark of its job's cancellation; the record says it still. A job that is marked as
-- suspected has had a call of which Redis has lost the lease or the result: its message says so from now on. One that is
-- marked as forgotten has ended, and whoever asked for it has its result: its message goes.
--
--- @include constants message
--
-- KEYS  1 unacked (hash, kombu's), 2 unacked_index (zset, kombu's), 3 leases (zset, tag -> ms when it ends), 4 fence
--       (the last number given), 5 cancelled (zset, job id -> ms), 6 suspected (zset, job id or tag -> ms), 7 forgotten
--       (zset, job id -> ms), 8 streams that were asked for (zset, job id -> ms); then for each queue its delayed messages (zset) and its lists, most urgent first
-- ARGV  1 a JSON map:
--       messages, bytes   to take at most
--       lease_ms
--       queues            their names; lists_each  how many lists each has
--       lists             as list_of takes them
--       started           how many jobs have started; record_ttl_s  lifetime of their records
--       records           prefix of the jobs' records
--       then for each started job its record, 1 if the record is to be made where there is none, and its message's tag;
--       then the tags to acknowledge
-- Returns {now (ms), ms when the next delayed message is due or -1, {ids of jobs taken that are cancelled}, {ids of jobs
--          taken whose answers somebody reads as they come}, tag, number of the queue, message, tag, ...}

local unacked, index, leases, fence, cancelled, suspected = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local forgotten, streams = KEYS[7], KEYS[8]
local ask = cjson.decode(ARGV[1])
local room, bytes, queues, lists_each = ask.messages, ask.bytes, #ask.queues, ask.lists_each
local first_started, first_ack = 2, 2 + 3 * ask.started
local now = now_ms()
local any_forgotten = redis.call('ZCARD', forgotten) > 0

local function is_forgotten(id)
  return any_forgotten and redis.call('ZSCORE', forgotten, id)
end

local started_at = string.format('%.3f', now / 1000)
for i = first_started, first_ack - 1, 3 do
  local record = ARGV[i]
  local is_wanted = ARGV[i + 1] == '1' or redis.call('EXISTS', record) == 1
  if is_wanted and not is_forgotten(string.sub(record, #ask.records + 1)) then
    redis.call('HSET', record, 'state', RUNNING, 'started_at', started_at, 'tag', ARGV[i + 2])
    redis.call('EXPIRE', record, ask.record_ttl_s)
  end
end
forget_all(unacked, index, leases, ARGV, first_ack)

local function key_of(queue, list)
  return KEYS[8 + (queue - 1) * (lists_each + 1) + 1 + list]
end

local next_due = -1
for queue = 1, queues do
  local delayed = key_of(queue, 0)
  local due = redis.call('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, 100)
  for _, raw in ipairs(due) do
    local id = job_id(raw)
    if id and redis.call('HEXISTS', ask.records .. id, 'cancel') == 1 then redis.call('ZADD', cancelled, 'NX', now, id) end
    redis.call('RPUSH', list_of(raw, key_of(queue, 1), ask.lists), raw)
    redis.call('ZREM', delayed, raw)
  end
  local first = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')
  if first[2] and (next_due < 0 or tonumber(first[2]) < next_due) then
    next_due = tonumber(first[2])
  end
end

local cancelled_ids, stream_ids = {}, {}
local reply = { now, next_due, cancelled_ids, stream_ids }
-- Redis undoes nothing of a script that fails. So whatever may fail, because somebody has made another thing of one of our
-- keys, fails before a message is taken; of the lists, one that is none is left alone.
local any_cancelled, any_suspected, any_streams, fence_before, last_fence, problem
if room > 0 then
  any_cancelled = redis.call('ZCARD', cancelled) > 0
  any_suspected = redis.call('ZCARD', suspected) > 0
  any_streams = redis.call('ZCARD', streams) > 0
  fence_before = math.max(tonumber(redis.call('GET', fence) or 0), now_us())
  redis.call('HLEN', unacked)
  redis.call('ZCARD', leases)
  redis.call('ZCARD', index)
end
local records, lease_scores, index_scores = {}, {}, {}
local may_drop = 1000 -- so that this ends
-- Numbers as text: Redis would print each with 17 digits, and read it again.
local ends, taken_at = string.format('%d', now + ask.lease_ms), string.format('%d', now / 1000)
for list = 1, lists_each do
  for queue = 1, queues do
    local rest = record_end(ask.queues[queue])
    while room > 0 and bytes > 0 do
      local raw = redis.pcall('RPOP', key_of(queue, list))
      if type(raw) == 'table' then problem = raw end
      if type(raw) ~= 'string' then break end
      local id = (any_cancelled or any_suspected or any_forgotten or any_streams) and job_id(raw)
      local is_cancelled = any_cancelled and id and redis.call('ZSCORE', cancelled, id)
      if is_cancelled and may_drop > 0 and redis.call('HGET', ask.records .. id, 'state') == CANCELLED then
        may_drop = may_drop - 1
      elseif id and is_forgotten(id) and may_drop > 0 then
        redis.call('ZREM', forgotten, id)
        may_drop = may_drop - 1
      else
        if any_suspected and id and redis.call('ZREM', suspected, id) == 1 then
          local deliveries = history(raw)
          raw = with_history(raw, deliveries, 1)
        end
        last_fence = (last_fence or fence_before) + 1
        local tag = string.format('pm-%d', last_fence)
        local at = #records
        records[at + 1], records[at + 2] = tag, '[' .. raw .. rest
        lease_scores[at + 1], lease_scores[at + 2] = ends, tag
        index_scores[at + 1], index_scores[at + 2] = taken_at, tag
        reply[#reply + 1], reply[#reply + 2], reply[#reply + 3] = tag, queue, raw
        if is_cancelled then cancelled_ids[#cancelled_ids + 1] = id end
        if any_streams and id and redis.call('ZSCORE', streams, id) then stream_ids[#stream_ids + 1] = id end
        room, bytes = room - 1, bytes - #raw
      end
    end
  end
end
call_for_all('HSET', unacked, records)
call_for_all('ZADD', leases, lease_scores)
call_for_all('ZADD', index, index_scores)
if last_fence then
  redis.call('SET', fence, string.format('%d', last_fence))
end
if problem and not last_fence then return problem end
return reply
