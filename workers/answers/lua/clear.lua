-- clear.lua: delete a piece of the stored answers, of one tenant or of all.
--
--- @include when_full
--
-- KEYS  1 answers (zset), 2 their ends (zset), 3 their state (hash)
-- ARGV  1 a JSON map: answers, prefix of their keys; tenant, what their digests begin with, or ''; position, from the
--       oldest; most, to look at
-- Returns {how many were deleted, the position to go on from, or -1 = done}.

local ask = cjson.decode(ARGV[1])
local found = redis.call('ZRANGE', KEYS[1], ask.position, ask.position + ask.most - 1)
local deleted = 0
for _, member in ipairs(found) do
  local digest, bytes = string.match(member, '^(%S+) (%d+)$')
  if string.sub(digest, 1, #ask.tenant) == ask.tenant then
    redis.call('DEL', ask.answers .. digest)
    redis.call('ZREM', KEYS[1], member)
    redis.call('ZREM', KEYS[2], member)
    redis.call('HINCRBY', KEYS[3], 'bytes', -bytes)
    deleted = deleted + 1
  end
end
local is_done = #found < ask.most
if is_done then redis.call('HINCRBY', KEYS[3], 'cleared', 1) end
return { deleted, is_done and -1 or ask.position + #found - deleted }
