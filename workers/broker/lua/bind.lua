-- bind.lua: enter a queue into its exchange's table, as kombu does (kombu/transport/redis.py, `_queue_bind`), on a Redis
-- that is full: a worker must be able to start there, or nobody drains the queue.
--
--- @include message
--
-- KEYS  1 the exchange's table (set), 2 its permanent members (set), or the tables' deadlines (zset)
-- ARGV  as kombu gives them: 1 the member, 2 the exchange, 3 lifetime (ms) of the table, 0 = for ever
-- Returns 1.

redis.call('SADD', KEYS[1], ARGV[1])
if ARGV[3] == '0' then
  redis.call('SADD', KEYS[2], ARGV[1])
else
  redis.call('ZADD', KEYS[2], 'GT', now_ms() + tonumber(ARGV[3]), ARGV[2])
end
return 1
