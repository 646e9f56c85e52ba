-- sweep.lua: one piece of a pass over a queue's delayed messages, from the one that is due last.
--
-- A message whose job was cancelled goes: where the job's end is recorded, it is deleted; else it is due now, so that a worker
-- takes it and records the end. After Redis's clock was set back, what was parked until a time that is now too far ahead
-- is due now as well. One worker at a time goes over the messages, a piece at a time, because a message is found by its
-- text only; an index of 100,000 would take some 20 MB.
--
--- @include constants message
--
-- KEYS  1 sweep (hash: owner, at, began, done), 2 cancelled, 3 the queue's delayed messages, 4 its list
-- ARGV  1 a JSON map:
--       me                this worker
--       silent_ms         how long an owner may be silent
--       position          from the end
--       messages, bytes   to look at, at most
--       furthest_ms       from now: no parked message is due later
--       clock_was_set     whether to look at those too
--       wanted_ms         what a pass must have begun after
--       is_last           whether this is the last queue
--       lists             as list_of takes them; records  prefix of the jobs' records
-- Returns the position to go on from; -1 = the queue is done, -2 = another worker is at it, -3 = there was a pass already.

local now, ask = now_ms(), cjson.decode(ARGV[1])
local owner, at, began, done = unpack(redis.call('HMGET', KEYS[1], 'owner', 'at', 'began', 'done'))
at, done = tonumber(at or 0), tonumber(done or 0)
if done <= now and done > ask.wanted_ms and not ask.clock_was_set then return -3 end
if owner and owner ~= ask.me and at <= now and now - at < ask.silent_ms then return -2 end
local position = ask.position
if owner ~= ask.me or not began then began = now end
redis.call('HSET', KEYS[1], 'owner', ask.me, 'at', now, 'began', began)
redis.call('EXPIRE', KEYS[1], SWEEP_TTL_S)

local furthest = now + ask.furthest_ms

-- What is to become of a message: nil = it stays.
local function fate(raw, due)
  local id = job_id(raw)
  if id and redis.call('ZSCORE', KEYS[2], id) then
    local state, claimed = unpack(redis.call('HMGET', ask.records .. id, 'state', 'ending'))
    if state == CANCELLED or state == EXPIRED then return 'delete' end
    local ago = now - tonumber(claimed or 0)
    if ago < 0 or ago > CLAIM_MS then return 'due' end
  elseif ask.clock_was_set and due > furthest and string.find(raw, '"eta": ?null') then
    return 'due'
  end
end

local left, bytes, finished = ask.messages, ask.bytes, false
while left > 0 and bytes > 0 and not finished do
  local found = redis.call('ZREVRANGE', KEYS[3], position, position + 9, 'WITHSCORES')
  finished = #found == 0
  for i = 1, #found, 2 do
    local raw = found[i]
    local what = fate(raw, tonumber(found[i + 1]))
    if what then
      redis.call('ZREM', KEYS[3], raw)
      if what == 'due' then redis.call('RPUSH', list_of(raw, KEYS[4], ask.lists), raw) end
    else
      position = position + 1
    end
    left, bytes = left - 1, bytes - #raw
  end
end
if not finished then return position end
if ask.is_last then
  redis.call('HSET', KEYS[1], 'done', began)
  redis.call('HDEL', KEYS[1], 'owner', 'began')
end
return -1
