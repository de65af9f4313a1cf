-- drop_conflicts.lua: drop entries that were read, and no others.
--
-- KEYS     1 conflicts  stream
-- ARGV     ids of the entries
-- returns  how many entries are left

if #ARGV > 0 then redis.call('XDEL', KEYS[1], unpack(ARGV)) end
local left = redis.call('XLEN', KEYS[1])
if left == 0 then redis.call('DEL', KEYS[1]) end
return left
