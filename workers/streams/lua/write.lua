-- write.lua: write what has come of answers, for those that read them as they come.
--
-- The id of an entry says where it stands: `<run>-<characters of the run's text up to its end>`. So Redis itself refuses
-- what a worker says late whose job another worker runs by now, and a reader finds its place by where it stands. An entry
-- has one field: `b` a call has begun (at 0 characters), `t` text, `f` the stream takes no more text, `e` the answer's end,
-- with the digest of its whole text. `f` and `e` come one and two characters behind the text. Each is published too, as
-- `<id> <field> <value>`, on the channel of the stream's name.
--
-- KEYS  1 streams that were asked for (zset, job id -> ms)
-- ARGV  1 a JSON map:
--       streams           prefix of the streams
--       ttl_s, keep_s     lifetime of a stream that is being written, and after its end
--       feeds             for each: id (the job's), run (0: a call has begun), at (characters up to the end of the text),
--                         text, full (1: no more text is written), digest (of the answer that has ended; "": the job has
--                         ended without one)
-- Returns for each feed the number of its run; -1 if its stream is gone, or another worker writes it; -2 if Redis takes no
--         writes now.

local ask = cjson.decode(ARGV[1])

local LOST = -1
local AGAIN = -2

local function add(key, run, at, kind, value)
  local id = string.format('%d-%d', run, at)
  local added = redis.pcall('XADD', key, 'NOMKSTREAM', id, kind, value)
  if type(added) == 'string' then
    redis.call('PUBLISH', key, id .. ' ' .. kind .. ' ' .. value)
    return run
  end
  if not added then return LOST end
  local last = redis.pcall('XREVRANGE', key, '+', '-', 'COUNT', 1)
  local last_run, last_at = string.match(last[1] and last[1][1] or '', '^(%d+)%-(%d+)$')
  if tonumber(last_run) == run and tonumber(last_at) >= at then return run end -- said before
  for _, word in ipairs({ 'OOM', 'MISCONF', 'READONLY', 'NOREPLICAS' }) do
    if string.find(added.err, word, 1, true) then return AGAIN end
  end
  return LOST
end

-- The number of the run that begins: that of the last, if it has brought no text.
local function begin(key)
  local last = redis.pcall('XREVRANGE', key, '+', '-', 'COUNT', 1)
  if last.err then return LOST end
  local run = 1
  if last[1] then
    local before, at = string.match(last[1][1], '^(%d+)%-(%d+)$')
    if at == '0' then return tonumber(before) end
    run = tonumber(before) + 1
    local status = add(key, run, 0, 'b', '')
    if status < 0 then return status end
  else
    local added = redis.pcall('XADD', key, '1-0', 'b', '')
    if type(added) ~= 'string' then return AGAIN end
    redis.call('PUBLISH', key, '1-0 b ')
  end
  redis.call('EXPIRE', key, ask.ttl_s)
  return run
end

local replies = {}
for n, feed in ipairs(ask.feeds) do
  local key = ask.streams .. feed.id
  local status = feed.run
  if status == 0 then status = begin(key) end
  local run = status
  if status > 0 and feed.text ~= '' then status = add(key, run, feed.at, 't', feed.text) end
  -- Said again, it is there already.
  if status > 0 and feed.full then add(key, run, feed.at + 1, 'f', '') end
  if status > 0 and feed.digest then
    if feed.digest ~= '' then status = add(key, run, feed.at + 2, 'e', feed.digest) end
    redis.call('EXPIRE', key, ask.keep_s)
    redis.call('ZREM', KEYS[1], feed.id)
  end
  replies[n] = status
end
return replies
