-- restore.lua: give a session all that its archive holds, and drop the archive if it is a key.
-- Follows content.lua.
--
-- KEYS     see archiving.lua
-- ARGV     1 place: where the archive is, as the stub says
--          2… for each key of an archive what it holds: see content.lua
-- returns  1, or 0 when the session is not archived at that place any more

if redis.call('HGET', METADATA, 'archive') ~= ARGV[1] then return 0 end

redis.call('HSET', METADATA, 'archive', ARGV[1])  -- a Redis that is full refuses only the first write
local archived = { unpack(KEYS, FIRST) }
redis.call('DEL', unpack(archived))
add_contents(archived, 2)
redis.call('DEL', ARCHIVE)
return 1
