--[[
Say that a group is complete, so that whoever reads its results knows when to end. Closing twice changes nothing.

KEYS
  1      the group's hash
  2      the group's list of job ids
ARGV
  1      seconds that a group lives after its last change

Returns how many jobs the group has.
]]
local submitted = redis.call("HGET", KEYS[1], "submitted") or "0"
redis.call("HSET", KEYS[1], "submitted", submitted, "total", submitted)
redis.call("EXPIRE", KEYS[1], ARGV[1])
redis.call("EXPIRE", KEYS[2], ARGV[1])
return tonumber(submitted)
