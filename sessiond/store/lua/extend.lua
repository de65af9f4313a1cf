-- extend.lua: put back at a log's end what Redis lost of it, as it was. Follows content.lua.
--
-- KEYS     see log.lua
-- ARGV     1 epoch and 2 version of where the log ends; both "" where nothing is left of the session
--          3… for each key what comes to it, see content.lua; of a document, all that it holds
-- returns  1, or 0 when the log does not end there: then nothing was done

local METADATA, DOCUMENTS = KEYS[1], { KEYS[1], KEYS[6], KEYS[7] }

local function nothing_is_left()
  for i = 1, #KEYS do
    if redis.call('EXISTS', KEYS[i]) == 1 then return false end
  end
  return true
end

local function ends_there()
  local status, epoch, version, archive =
    unpack(redis.call('HMGET', METADATA, 'status', 'epoch', 'version', 'archive'))
  return status == 'active' and not archive and epoch == ARGV[1] and version == ARGV[2]
end

if ARGV[1] == '' and not nothing_is_left() or ARGV[1] ~= '' and not ends_there() then return 0 end

redis.call('DEL', unpack(DOCUMENTS))
cursor = 3
for i = 1, #KEYS do write_content(KEYS[i]) end
return 1
