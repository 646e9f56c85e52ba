-- look.lua: is there an answer to each of these prompts, or a call under way for an equal one? Else the job is to lead.
--
-- One script says both, so that of a thousand equal prompts one is told to call. A job that comes back (it was parked, or
-- its worker died) leads again; another message of the same job waits for it as any other does. A job takes the lead of
-- one whose lease has ended, or which is parked and less urgent.
--
--- @include constants when_full time flight
--
-- KEYS  1 the answers (zset); a prompt's own keys are its digest behind a prefix, because packing arguments is what most of
--       a batch costs
-- ARGV  1 a JSON map:
--       process   part of the tokens of its leads
--       answers, flights   prefixes of the prompts' answers (strings), and flights (hashes)
--       lease_ms, soon_ms, furthest_ms   how long a lead lasts; when those that wait look again, first and at the latest
--       ahead_ms   what Redis's clock is ahead of the one that submitted_s is by
--       asks   a column each: digest, job (id), number (of the question, of the process), rank (0 is the most urgent), ttl_ms (how
--              old an answer may be), submitted_s (-1: nobody knows), followed (the token that it has waited for, or ''),
--              has_next (whether it has another model to ask), is_redelivered (whether the worker that had the message
--              before is gone)
-- Returns for each prompt {0, answer, ms it lives} = an answer, 1 = lead, {2, token} = wait for the flight, {3, what} =
--         what has become of a call that was under way together with it.

local ask = cjson.decode(ARGV[1])
local now = now_ms()

local LEFT = 'l' -- known.py: a failure for those that have another model to ask

local function was_under_way(job, landed_at, token)
  if not landed_at or now - landed_at > FLIGHT_TTL_S * 1000 then return false end
  return token == job.followed or (job.submitted_s >= 0 and math.floor(job.submitted_s * 1000) + ask.ahead_ms <= landed_at)
end

-- What it shares of a call that was under way together with it.
local function shared(key, job, landed_at, token)
  if not was_under_way(job, landed_at, token) then return nil end
  local landed = redis.call('HGET', key, 'landed')
  return (job.has_next or string.sub(landed, 1, 1) ~= LEFT) and landed or nil
end

local function is_led(flight, job)
  if not flight.leader or now >= flight.ends then return false end
  if flight.token == token_of(ask.process, job.number) then return false end -- the same question again: its reply was lost
  if flight.leader == job.job then return not (flight.is_parked or job.is_redelivered) end
  return not (flight.is_parked and job.rank < flight.rank)
end

local function look(answer, key, job)
  local stored = redis.call('MGET', answer)[1]
  if stored and now - tonumber(string.sub(stored, 1, 13)) <= job.ttl_ms then
    return { 0, stored, redis.call('PTTL', answer) }
  end
  local flight = read_flight(key)
  local landed = shared(key, job, flight.landed_at, flight.landed_token)
  if landed then return { 3, landed } end
  local began, due = flight.began or now, flight.due
  local follows = is_led(flight, job)
  if not follows then
    if not flight.leader then began = now end
    redis.call('HSET', key, 'leader', job.job, 'token', token_of(ask.process, job.number), 'rank', job.rank, 'parked', 0,
      'began', began, 'ends', now + ask.lease_ms)
  end
  -- All that wait are due at one instant, which no other message has: so whoever ends the flight finds them.
  if not due or due <= now or due > now + ask.furthest_ms then
    due = now + math.min(ask.furthest_ms, math.max(ask.soon_ms, now - began)) + job.number % 4096 / 4096
    redis.call('HSET', key, 'due', score_of(due))
  end
  keep_flight(key, math.max(due, follows and flight.ends or now + ask.lease_ms))
  return follows and { 2, flight.token } or 1
end

local reply = {}
for n, digest in ipairs(ask.asks.digest) do
  reply[n] = look(ask.answers .. digest, ask.flights .. digest, row_of(ask.asks, n))
end
return reply
