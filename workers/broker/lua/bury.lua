-- bury.lua: move a message to the dead letters.
--
--- @include message
--
-- KEYS  1 unacked, 2 unacked_index, 3 leases, 4 dead letters (list, newest first), 5 their counts (hash, reason -> n)
-- ARGV  1 a JSON map: tag; kind, the reason in a word; kept, dead letters at most
--       2 the dead letter (JSON)
-- Returns 1, or 0 if the lease was lost: then somebody else has the message.

local ask = cjson.decode(ARGV[1])
if not redis.call('ZSCORE', KEYS[3], ask.tag) then return 0 end
redis.call('LPUSH', KEYS[4], ARGV[2])
redis.call('LTRIM', KEYS[4], 0, ask.kept - 1)
redis.call('HINCRBY', KEYS[5], ask.kind, 1)
forget(KEYS[1], KEYS[2], KEYS[3], ask.tag)
return 1
