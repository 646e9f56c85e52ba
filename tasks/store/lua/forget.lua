-- forget.lua: delete the records of jobs, and mark those whose message may come back although they have ended.
--
-- A result is stored before its message is acknowledged. Until then the worker may die, and the message comes back: a
-- stored result shows that its call is paid for. Once that is deleted, the mark does.
--
--- @include constants when_full time
--
-- KEYS
--   1      the forgotten jobs: a sorted set, id -> milliseconds
--   2      the leases: a sorted set, delivery tag -> milliseconds
--   3...   each job's record
-- ARGV
--   for each job its id, and 1 if it has ended

for n = 1, #KEYS - 2 do
  local record, id, has_ended = KEYS[n + 2], ARGV[2 * n - 1], ARGV[2 * n] == "1"
  local state, tag = unpack(redis.call("HMGET", record, "state", "tag"))
  -- Workers before this script's write no tag.
  local is_acknowledged = state == RUNNING and tag and not redis.call("ZSCORE", KEYS[2], tag)
  if has_ended and (state == QUEUED or state == RUNNING) and not is_acknowledged then
    redis.call("ZADD", KEYS[1], now_ms(), id)
  end
  redis.call("DEL", record)
end
