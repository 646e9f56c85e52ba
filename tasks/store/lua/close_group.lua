-- close_group.lua: say that a group is complete, so that whoever reads its results knows when to end. Closing
-- twice changes nothing.
--
--- @include constants
--
-- KEYS
--   1      the group's hash
--   2      the group's list of job ids
-- Returns how many jobs the group has.

local submitted = redis.call("HGET", KEYS[1], "submitted") or "0"
redis.call("HSET", KEYS[1], "submitted", submitted, "total", submitted)
local ended = 0
for _, count in ipairs(redis.call("HMGET", KEYS[1], unpack(STATUSES))) do
  ended = ended + (tonumber(count or 0))
end
local ttl = ended >= tonumber(submitted) and RECORD_TTL_S or WAITING_TTL_S
redis.call("EXPIRE", KEYS[1], ttl)
redis.call("EXPIRE", KEYS[2], ttl)
return tonumber(submitted)
