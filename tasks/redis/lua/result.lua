-- result.lua: what the beginning of a Celery result record says.
--- @include constants
-- Gives: recorded_state(key), nil = there is no record, or none that says so; celery_ended = { SUCCESS = true, ... };
--        has_ended(key).

local celery_ended = {}
for _, state in ipairs(CELERY_ENDS) do celery_ended[state] = true end

local function recorded_state(key)
  local head = redis.call('GETRANGE', key, 0, 40)
  -- Of all that our workers store, they compress answers alone.
  if string.sub(head, 1, #CELERY_COMPRESSED) == CELERY_COMPRESSED then return SUCCESS end
  return string.match(head, '^{"status": ?"(%u+)"')
end

local function has_ended(key)
  return celery_ended[recorded_state(key)] == true
end
