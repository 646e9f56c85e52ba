-- bury.lua: move a message to the dead letters.
--
--- @include message
--
-- KEYS  1 unacked, 2 unacked_index, 3 leases, 4 dead letters (list, newest first), 5 their counts (hash, reason -> n)
-- ARGV  1 tag, 2 the dead letter (JSON), 3 reason in a word, 4 dead letters kept at most
-- Returns 1, or 0 if the lease was lost: then somebody else has the message.

if not redis.call('ZSCORE', KEYS[3], ARGV[1]) then return 0 end
redis.call('LPUSH', KEYS[4], ARGV[2])
redis.call('LTRIM', KEYS[4], 0, tonumber(ARGV[4]) - 1)
redis.call('HINCRBY', KEYS[5], ARGV[3], 1)
forget(KEYS[1], KEYS[2], KEYS[3], ARGV[1])
return 1
