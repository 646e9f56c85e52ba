-- retry_dead.lua: give a dead letter's message a new life.
--
--- @include message
--
-- KEYS  1 dead letters (list), 2 the queue's name, which is its most urgent list
-- ARGV  1 the letter as it stands in the list, 2 its message, 3 priority steps, 4 separator, 5 prefix of the jobs' records
-- Returns 1, or 0 if the letter was not there any more.

if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 0 then return 0 end
local raw = without_history(ARGV[2])
redis.call('LPUSH', list_of(raw, KEYS[2], numbers(ARGV[3]), ARGV[4]), raw)
mark_queued(raw, ARGV[5])
return 1
