-- keep_refused.lua: keep what came for a session that was deleted meanwhile.
--
-- KEYS     1 metadata  hash    2 conflicts  stream
-- ARGV     field, value, … of the entry
-- returns  the entry's id: "<last offset of the session>-<count>"; nil when the session is not
--          deleted: what came may be written after all

if redis.call('HGET', KEYS[1], 'status') ~= 'deleted' then return nil end
local version = redis.call('HGET', KEYS[1], 'version')
return redis.call('XADD', KEYS[2], version .. '-*', unpack(ARGV))
