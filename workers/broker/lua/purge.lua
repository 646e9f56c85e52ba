-- purge.lua: take messages off a queue whose jobs have been cancelled, or say which ones are next.
--
-- First the jobs of a few messages are marked as cancelled; then their ends are recorded, outside; then the messages go. So
-- a crash in between loses no end, and a worker that takes one of them meanwhile throws it away.
--
--- @include message
--
-- KEYS  1 cancelled (zset, job id -> ms), 2 the queue's delayed messages, then its lists
-- ARGV  1 a JSON map: messages, bytes, at most; records, prefix of the jobs' records
--       then, to take off, the jobs' ids
-- Returns, without ids, {the next messages' ids, "" for one without}; with ids, how many messages went.

local lists = #KEYS - 2
local ask = cjson.decode(ARGV[1])
local left, bytes = ask.messages, ask.bytes

if #ARGV == 1 then
  local ids = {}
  local function mark(raw)
    local id = job_id(raw) or ''
    ids[#ids + 1] = id
    left, bytes = left - 1, bytes - #raw
    if id == '' then return end
    redis.call('ZADD', KEYS[1], 'NX', now_ms(), id)
    local record = ask.records .. id
    if redis.call('HEXISTS', record, 'state') == 1 then redis.call('HSETNX', record, 'cancel', now_s()) end
  end
  for list = 3, #KEYS do
    local back = -1
    while left > 0 and bytes > 0 do
      local raw = redis.call('LINDEX', KEYS[list], back)
      if not raw then break end
      mark(raw)
      back = back - 1
    end
  end
  local front = 0
  while left > 0 and bytes > 0 do
    local raw = redis.call('ZRANGE', KEYS[2], front, front)[1]
    if not raw then break end
    mark(raw)
    front = front + 1
  end
  return ids
end

local gone, given = 0, {}
for i = 2, #ARGV do given[ARGV[i]] = true end
local function is_given(raw)
  local id = job_id(raw) or ''
  if not given[id] then return false end
  if id ~= '' then redis.call('ZREM', KEYS[1], id) end
  gone = gone + 1
  return true
end
for list = 3, #KEYS do
  while gone < left do
    local raw = redis.call('LINDEX', KEYS[list], -1)
    if not raw or not is_given(raw) then break end
    redis.call('RPOP', KEYS[list])
  end
end
while gone < left do
  local raw = redis.call('ZRANGE', KEYS[2], 0, 0)[1]
  if not raw or not is_given(raw) then break end
  redis.call('ZREM', KEYS[2], raw)
end
return gone
