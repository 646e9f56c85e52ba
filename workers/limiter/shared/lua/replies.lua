-- replies.lua: a call whose reply was lost, and that is made again, gets the same reply and changes nothing.
--- @include constants clock
-- Gives: repeated_reply(key, state_key, ask, now), nil = it is new; keep_reply(key, ask, reply).
--
-- A call is known by (process, seq). The hash `key` holds process -> "seq reply", of its latest call.

local fixed_fields = 10

local function repeated_reply(key, state_key, ask, now)
  local before = redis.call('HGET', key, ask.process)
  local seq, text = string.match(before or '', '^(%d+) (.*)$')
  if tonumber(seq) ~= ask.seq then return nil end
  local reply = {}
  for word in string.gmatch(text, '%S+') do reply[#reply + 1] = word end
  local epoch_now, pause = unpack(redis.call('HMGET', state_key, 'epoch', 'pause'))
  -- A pause since then has made its slots void.
  if epoch_now ~= reply[2] then reply = { unpack(reply, 1, fixed_fields) } end
  reply[1], reply[2] = micros(now), epoch_now or reply[2]
  reply[3] = tonumber(pause or 0) > now and micros(tonumber(pause)) or '0'
  return reply
end

local function keep_reply(key, ask, reply)
  redis.call('HSET', key, ask.process, string.format('%.0f ', ask.seq) .. table.concat(reply, ' '))
  redis.call('EXPIRE', key, LIMITER_PROCESS_TTL_S)
end
