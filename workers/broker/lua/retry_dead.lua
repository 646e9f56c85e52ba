-- retry_dead.lua: give a dead letter's message a new life.
--
--- @include message
--
-- KEYS  1 dead letters (list), 2 the queue's name, which is its most urgent list
-- ARGV  1 a JSON map: lists, as list_of takes them; records, prefix of the jobs' records
--       2 the letter as it stands in the list, 3 its message
-- Returns 1, or 0 if the letter was not there any more.

local ask = cjson.decode(ARGV[1])
if redis.call('LREM', KEYS[1], 1, ARGV[2]) == 0 then return 0 end
local raw = without_history(ARGV[3])
redis.call('LPUSH', list_of(raw, KEYS[2], ask.lists), raw)
mark_queued(raw, ask.records)
return 1
