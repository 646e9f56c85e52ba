-- when_full.lua: lets a script pass on a Redis that is full (maxmemory, noeviction).
--- @include constants
-- Gives: a first write that needs no memory. Redis refuses only a script's first write (6.2: luaRedisGenericCommand in
--        scripting.c; 7.0: scriptVerifyOOM in script.c). For scripts that must run for the queue to drain: those that
--        take, acknowledge and return messages, and store results. Submitting is refused there.

redis.call('DEL', NO_KEY)
