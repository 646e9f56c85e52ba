-- message.lua: what the broker's scripts know of a message.
--- @include constants when_full time lists
-- Gives: history(raw), without_history(raw), with_history(raw, deliveries, suspected), with_memory(raw, memory);
--        record_end(queue), unpacked(record), job_id(raw);
--        mark_queued(raw, record_prefix), suspect(suspected, id);
--        call_for_all(command, key, words, first), forget(unacked, index, leases, tag), forget_all(..., tags, first).
--
-- The text of a message is never decoded and encoded again: Lua's cjson turns [] into {} and rounds long integers.
-- How often a message was delivered travels at its end, as a field that kombu ignores.

local TRAILER = ', "promptmill": {"deliveries": %d, "suspected": %d}}'
local TRAILER_PATTERN = ', "promptmill": {"deliveries": (%d+), "suspected": (%d)}}$'

-- Deliveries that have ended badly so far, and 1 if one of them may have paid for a call.
local function history(raw)
  local deliveries, suspected = string.match(string.sub(raw, -80), TRAILER_PATTERN)
  return tonumber(deliveries or 0), tonumber(suspected or 0)
end

local function without_history(raw)
  local start = string.find(string.sub(raw, -80), TRAILER_PATTERN)
  return start and string.sub(raw, 1, #raw - math.min(80, #raw) + start - 1) .. '}' or raw
end

local function with_history(raw, deliveries, suspected)
  return string.sub(without_history(raw), 1, -2) .. string.format(TRAILER, deliveries, suspected)
end

-- What a job must not forget while it is parked stands before its history, in base64. Workers that know nothing of it
-- leave it where it is.
local MEMORY = ', "promptmill_parked": "%s"}'
local MEMORY_PATTERN = ', "promptmill_parked": "[%w+/=]*"}$'

local function with_memory(raw, memory)
  local deliveries, suspected = history(raw)
  raw = without_history(raw)
  local start = string.find(raw, MEMORY_PATTERN)
  raw = string.sub(raw, 1, start and start - 1 or -2) .. string.format(MEMORY, memory)
  return (deliveries > 0 or suspected > 0) and with_history(raw, deliveries, suspected) or raw
end

-- A record of `unacked` is kombu's: [message, "exchange", "routing key"], in JSON. Ours have no exchange, and the
-- queue's name as the routing key.
local function record_end(queue) -- what follows "[" and the message
  return ', "", ' .. cjson.encode(queue) .. ']'
end

local function unpacked(record)
  local raw, queue = string.match(record, '^%[(.*), "", (".*")%]$')
  if raw then return raw, cjson.decode('[' .. queue .. ']')[1] end
end

local function job_id(raw)
  return string.match(raw, '"headers": ?{.-"id": ?"([^"]*)"')
end

-- The record of a message's job, if it has one, says that the job waits again, and lives as long as those that wait do.
local function mark_queued(raw, record_prefix)
  local id = job_id(raw)
  local record = id and record_prefix .. id
  if record and redis.call('HEXISTS', record, 'state') == 1 then
    redis.call('HSET', record, 'state', QUEUED)
    -- One that was submitted with a long delay lives longer already.
    if redis.call('TTL', record) < WAITING_TTL_S then redis.call('EXPIRE', record, WAITING_TTL_S) end
  end
end

-- Mark a job (or a lease) whose next (or present) call is not its first.
local function suspect(suspected, id)
  redis.call('ZADD', suspected, now_ms() + RECORD_TTL_S * 1000, id)
  redis.call('EXPIRE', suspected, RECORD_TTL_S)
end

-- A command for many words at a time: each call from Lua costs more than most commands do.
local AT_ONCE = 1000 -- even, and far below what unpack can take (LUAI_MAXCSTACK, 8,000)

local function call_for_all(command, key, words, first)
  for start = first or 1, #words, AT_ONCE do
    redis.call(command, key, unpack(words, start, math.min(start + AT_ONCE - 1, #words)))
  end
end

local function forget_all(unacked, index, leases, tags, first)
  call_for_all('HDEL', unacked, tags, first)
  call_for_all('ZREM', index, tags, first)
  call_for_all('ZREM', leases, tags, first)
end

local function forget(unacked, index, leases, tag)
  forget_all(unacked, index, leases, { tag })
end
