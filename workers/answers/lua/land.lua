-- land.lua: what has become of calls that were under way for equal prompts: store the answers, and wake those that wait.
--
-- An answer is for everybody, whoever leads by now. Anything else is the leader's to say. What the equal prompts share,
-- they are told for a while, if they were submitted before. What they need not share, one of them is woken to try again.
--
-- The answers take no more than their bytes: the oldest make room. A Redis that is full takes none (its first refusal holds
-- for all), but the flights end.
--
--- @include constants time flight lists
--
-- KEYS  1 answers (zset), 2 their ends (zset), 3 their state (hash)
-- ARGV  1 a JSON map:
--       room_bytes              for all answers
--       lists                   as list_of takes them; prefix, delayed   of all keys, of the delayed sets
--       answers, flights        prefixes of the prompts' answers (strings), and flights (hashes)
--       process   part of the tokens of its leads
--       calls   a column each: digest; number (of the question that led); how: 'store', 'share', 'release', 'park', or
--               'wake' to go on waking; bytes, of its part of the next argument; ttl_ms; until_ms (of one that is parked);
--               rank
--       2 what is stored or shared, call by call
-- Returns for each call how many more may wait.

local ask = cjson.decode(ARGV[1])
local now = now_ms()
local answers, ends, state = KEYS[1], KEYS[2], KEYS[3]
local WAKE_AT_ONCE = 100
local WAKE_BYTES = 4 * 1024 * 1024
local WAKE_MOST = 2000
local OVERHEAD = 500 -- of an answer's key and its places in the indexes
local is_full = false

local function drop(member)
  redis.call('ZREM', ends, member)
  if redis.call('ZREM', answers, member) == 1 then
    redis.call('HINCRBY', state, 'bytes', -tonumber(string.match(member, '%d+$')))
  end
end

local function make_room(bytes)
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', ends, '-inf', now, 'LIMIT', 0, 100)) do
    drop(member)
  end
  local taken = tonumber(redis.call('HGET', state, 'bytes') or 0)
  while taken + bytes > ask.room_bytes do
    local oldest = redis.call('ZRANGE', answers, 0, 0)[1]
    if not oldest then break end
    redis.call('DEL', ask.answers .. string.match(oldest, '^%S+'))
    drop(oldest)
    taken = tonumber(redis.call('HGET', state, 'bytes'))
  end
end

-- Whether it is stored.
local function store(key, call, data)
  local bytes = #data + OVERHEAD
  if is_full or bytes > ask.room_bytes then return false end
  local before, ttl_ms = redis.call('STRLEN', key), math.max(call.ttl_ms, redis.call('PTTL', key))
  local reply = redis.pcall('SET', key, string.format('%013d', now) .. data, 'PX', string.format('%.0f', ttl_ms))
  if reply.err then
    is_full = true
    return false
  end
  if redis.call('EXISTS', answers) == 0 then redis.call('HSET', state, 'bytes', 0) end
  if before > 0 then drop(call.digest .. ' ' .. before - 13 + OVERHEAD) end
  make_room(bytes)
  local member = call.digest .. ' ' .. bytes
  if redis.call('ZADD', answers, now, member) == 1 then redis.call('HINCRBY', state, 'bytes', bytes) end
  redis.call('ZADD', ends, string.format('%.0f', now + ttl_ms), member)
  for _, index in ipairs({ answers, ends }) do
    if redis.call('PTTL', index) < ttl_ms then redis.call('PEXPIRE', index, string.format('%.0f', ttl_ms)) end
  end
  return true
end

-- Where messages of the flight may lie: { field, score, queue }.
local function places(key)
  local found = {}
  for _, field in ipairs(redis.call('HKEYS', key)) do
    local score, queue = string.match(field, '^at:([%d.]+):(.*)$')
    if score then found[#found + 1] = { field, score, queue } end
  end
  return found
end

local function wake(raw, queue)
  redis.call('ZREM', ask.delayed .. queue, raw)
  redis.call('RPUSH', list_of(raw, ask.prefix .. queue, ask.lists), raw)
end

-- 1 if there may be more than were woken now.
local function wake_all(key)
  local woken, bytes = 0, 0
  for _, place in ipairs(places(key)) do
    local field, score, queue = unpack(place)
    local due
    repeat
      due = redis.call('ZRANGEBYSCORE', ask.delayed .. queue, score, score, 'LIMIT', 0, WAKE_AT_ONCE)
      for _, raw in ipairs(due) do
        wake(raw, queue)
        woken, bytes = woken + 1, bytes + #raw
      end
      if woken >= WAKE_MOST or bytes >= WAKE_BYTES then return 1 end
    until #due == 0
    redis.call('HDEL', key, field)
  end
  return 0
end

-- The most urgent of the first that are found.
local function wake_one(key)
  local best, best_queue
  for _, place in ipairs(places(key)) do
    local _, score, queue = unpack(place)
    for _, raw in ipairs(redis.call('ZRANGEBYSCORE', ask.delayed .. queue, score, score, 'LIMIT', 0, WAKE_AT_ONCE)) do
      if not best or priority_of(raw) < priority_of(best) then best, best_queue = raw, queue end
    end
  end
  if best then wake(best, best_queue) end
  return best ~= nil
end

local function end_lead(key)
  redis.call('HDEL', key, 'leader', 'token', 'rank', 'ends', 'parked', 'began')
end

local function share(key, call, data)
  end_lead(key)
  redis.call('HSET', key, 'landed', data, 'landed_at', now, 'landed_token', call.token)
  keep_flight(key, now)
  return wake_all(key)
end

-- Nothing is left of a flight without followers, of which nobody has to hear.
local function wake_all_and_forget(key, flight)
  local left = wake_all(key)
  if left == 0 and not flight.landed_at then redis.call('DEL', key) end
  return left
end

local function land(key, call, data, is_stored)
  local flight = read_flight(key)
  if is_stored then
    end_lead(key)
    return wake_all_and_forget(key, flight)
  end
  if call.how == 'wake' then return flight.leader and wake_all(key) or wake_all_and_forget(key, flight) end
  if flight.token ~= call.token then return 0 end
  if call.how == 'store' or call.how == 'share' then return share(key, call, data) end
  if call.how == 'park' then
    redis.call('HSET', key, 'parked', 1, 'rank', call.rank, 'ends', string.format('%.0f', call.until_ms))
    keep_flight(key, math.max(call.until_ms, flight.due or now))
  elseif wake_one(key) or flight.landed_at then
    end_lead(key)
  else
    redis.call('DEL', key)
  end
  return 0
end

local calls, data, position = {}, {}, 1
for n, number in ipairs(ask.calls.number) do
  local call = row_of(ask.calls, n)
  call.token = token_of(ask.process, number)
  calls[n] = call
  data[n] = string.sub(ARGV[2], position, position + call.bytes - 1)
  position = position + call.bytes
end
local is_stored = {}
for n, call in ipairs(calls) do
  is_stored[n] = call.how == 'store' and store(ask.answers .. call.digest, call, data[n])
end
redis.call('DEL', NO_KEY) -- a write that a full Redis takes, and after it any
local reply = {}
for n, call in ipairs(calls) do
  reply[n] = land(ask.flights .. call.digest, call, data[n], is_stored[n])
end
return reply
