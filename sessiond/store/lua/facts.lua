-- facts.lua: what decides how long a session is kept, all of one moment. Follows use.lua.
--
-- KEYS     1 metadata  hash    2 context   hash    3 lease  hash
--          4 presence  hash    5 reads     hash
-- returns  status, workspace, epoch, version, last_activity, archived_at ("" where it is not), when it
--          was read last in ms ("" for never), and 1 or 0 for each: somebody is at it, somebody runs a
--          turn, an opencode has it; an empty list where there is no session, or no more
--
-- Time is the server's.

local found = redis.call('HMGET', KEYS[1],
  'status', 'workspace', 'epoch', 'version', 'last_activity', 'archived_at', 'of_opencode')
if not found[1] or found[1] == 'deleted' then return {} end
for i = 2, 6 do found[i] = found[i] or '' end
local of_opencode = found[7] == '1'  -- said by the stub of an archived one
local now = server_ms()
found[7] = redis.call('HGET', KEYS[5], 'read_ms') or ''
found[8] = is_present(KEYS[4], now) and 1 or 0
found[9] = has_turn(KEYS[3], now) and 1 or 0
found[10] = of_opencode and 1 or redis.call('HEXISTS', KEYS[2], 'opencode')
return found
