-- reclaim.lua: keep jobs whose leases Redis does not know, and which run: it came back without its last second, or the
-- worker stood still for longer than a lease.
--
-- The message is taken from where it is now, its queue or the delayed ones, and leased under the same tag, so that the
-- call under way stays the only one. Where it is nowhere, Redis has lost it: the lease is made anew, and a mark flags the
-- job should its message turn up. A job that has ended, or whose message is another worker's by now, is not kept; the
-- other's result is flagged, because it is the second call.
--
--- @include message result
--
-- KEYS  1 unacked, 2 unacked_index, 3 leases, 4 suspected (zset, job id or tag -> ms when the mark ends)
-- ARGV  1 a JSON map:
--       lease_ms
--       lists             as list_of takes them
--       prefix, delayed   prefixes: of all keys, of the delayed sets
--       results           prefix of the results; "" = they are in another Redis
--       messages, bytes   to look at in each place, at most
--       then for each message its tag, its queue, its text and its job's id ("" = read the text)
-- Returns for each message 1 if it is kept, or 0.

local unacked, index, leases, suspected = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local ask = cjson.decode(ARGV[1])
local now = now_ms()
local CHUNK = 100

-- Messages at the front of a list, by their jobs' ids. What was taken last was at the front.
local fronts = {}
local function front_of(list)
  if fronts[list] then return fronts[list] end
  local found, bytes = {}, 0
  for start = 1, ask.messages, CHUNK do
    local raws = redis.call('LRANGE', list, -(start + CHUNK - 1), -start)
    for _, raw in ipairs(raws) do
      bytes = bytes + #raw
      local id = job_id(raw)
      if id then found[id] = raw end
    end
    if #raws < CHUNK or bytes > ask.bytes then break end
  end
  fronts[list] = found
  return found
end

-- Tags of what is leased, by their jobs' ids.
local holders
local function holder_of(id)
  if holders then return holders[id] end
  holders = {}
  local cursor, seen, bytes = '0', 0, 0
  repeat
    local reply = redis.call('HSCAN', unacked, cursor, 'COUNT', CHUNK)
    cursor = reply[1]
    for i = 1, #reply[2], 2 do
      seen, bytes = seen + 1, bytes + #reply[2][i + 1]
      local other = job_id(reply[2][i + 1])
      if other then holders[other] = reply[2][i] end
    end
  until cursor == '0' or seen > ask.messages or bytes > ask.bytes
  return holders[id]
end

local function flag(tag)
  local raw, queue = unpacked(redis.call('HGET', unacked, tag))
  if raw then
    local deliveries = history(raw)
    redis.call('HSET', unacked, tag, '[' .. with_history(raw, deliveries, 1) .. record_end(queue))
  end
  suspect(suspected, tag)
end

local function is_waiting(raw, queue, id)
  local list = list_of(raw, ask.prefix .. queue, ask.lists)
  local waiting = front_of(list)[id]
  if waiting and redis.call('LREM', list, -1, waiting) == 1 then return true end
  local deliveries = history(raw)
  local delayed = ask.delayed .. queue
  return redis.call('ZREM', delayed, raw, with_history(raw, deliveries, 1), with_history(raw, deliveries + 1, 1)) > 0
end

local function is_kept(tag, queue, raw, id)
  if redis.call('ZSCORE', leases, tag) then return true end
  if ask.results ~= '' and has_ended(ask.results .. id) then return false end
  if not is_waiting(raw, queue, id) then
    local other = holder_of(id)
    if other then
      flag(other)
      return false
    end
    suspect(suspected, id)
  end
  redis.call('HSET', unacked, tag, '[' .. raw .. record_end(queue))
  return true
end

local kept = {}
for i = 2, #ARGV, 4 do
  local tag, raw, id = ARGV[i], ARGV[i + 2], ARGV[i + 3]
  local is_ours = is_kept(tag, ARGV[i + 1], raw, id ~= '' and id or job_id(raw) or '')
  if is_ours then
    redis.call('ZADD', leases, now + ask.lease_ms, tag)
    redis.call('ZADD', index, math.floor(now / 1000), tag)
  end
  kept[#kept + 1] = is_ours and 1 or 0
end
return kept
