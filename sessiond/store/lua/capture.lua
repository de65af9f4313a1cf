-- capture.lua: all that Redis holds of a session, of one moment. It changes nothing.
--
-- KEYS     see archiving.lua
-- returns  "ok", now in ms, what the session stands at, then for each key of an archive a list of
--          its type ("none" without the key) and its items: of a hash field, value, …; of a stream
--          its entries
--          or why not, and a detail: see archiving.lua

local READ = { hash = { 'HGETALL' }, stream = { 'XRANGE', '-', '+' } }

local reason, detail = obstacle()
if reason then return { reason, detail } end
local reply = { 'ok', now, standing() }
for i = FIRST, #KEYS do
  local kind = redis.call('TYPE', KEYS[i]).ok
  local command = READ[kind]
  local items = command and redis.call(command[1], KEYS[i], unpack(command, 2)) or {}
  reply[#reply + 1] = { kind, items }
end
return reply
