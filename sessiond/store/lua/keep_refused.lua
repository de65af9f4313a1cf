-- keep_refused.lua: keep what came for a session that was deleted meanwhile.
--
-- KEYS     1 metadata  hash    2 conflicts  stream
-- ARGV     1 how many entries there may be
--          2 what makes a repeated request recognisable among the newest; "" for nothing
--          3… field, value, … of the entry
-- returns  the entry's id: "<last offset of the session>-<count>"; 0 when there are too many; nil
--          when the session is not deleted: what came may be written after all

local METADATA, CONFLICTS = KEYS[1], KEYS[2]
local RECENT = 128

if redis.call('HGET', METADATA, 'status') ~= 'deleted' then return nil end
if ARGV[2] ~= '' then
  for _, entry in ipairs(redis.call('XREVRANGE', CONFLICTS, '+', '-', 'COUNT', RECENT)) do
    local fields = entry[2]
    for i = 1, #fields, 2 do
      if fields[i] == 'key' and fields[i + 1] == ARGV[2] then return entry[1] end
    end
  end
end
if redis.call('XLEN', CONFLICTS) >= tonumber(ARGV[1]) then return 0 end
local version = redis.call('HGET', METADATA, 'version')
return redis.call('XADD', CONFLICTS, version .. '-*', 'key', ARGV[2], unpack(ARGV, 3))
