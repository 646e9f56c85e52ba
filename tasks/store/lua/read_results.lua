-- read_results.lua: read stored results until a number of bytes is reached; the caller asks again for the rest.
--
-- KEYS
--   1...   results
-- ARGV
--   1      bytes; the first result is read whatever its size
--
-- Returns the first results, or false for one that is not there; as many as fit.

local budget, size, count = tonumber(ARGV[1]), 0, 0
for n, key in ipairs(KEYS) do
  size = size + redis.call("STRLEN", key)
  if n > 1 and size > budget then
    break
  end
  count = n
end
return redis.call("MGET", unpack(KEYS, 1, count))
