-- ended.lua: write into the records of jobs that were never run how they ended.
--
-- The record lives for as long as that of a job that waits would: the result is forgotten long before.
--
--- @include constants when_full
--
-- KEYS  for each job its record
-- ARGV  1 the state
-- Returns how many there were.

local count = 0
for _, record in ipairs(KEYS) do
  if redis.call('HGET', record, 'state') == QUEUED then
    redis.call('HSET', record, 'state', ARGV[1])
    redis.call('HDEL', record, 'ending')
    count = count + 1
  end
end
return count
