-- restore.lua: give a session all that its archive holds, and drop the archive if it is a key.
--
-- KEYS     see archiving.lua
-- ARGV     1 place: where the archive is, as the stub says
--          2… for each key of an archive: its type, the number of its items, and the items: of a
--          hash field, value, …; of a stream for each entry its id, the number of its values, and
--          name, value, …
-- returns  1, or 0 when the session is not archived at that place any more

local CHUNK = 4000  -- values in one call: Lua's stack is small

if redis.call('HGET', METADATA, 'archive') ~= ARGV[1] then return 0 end

local cursor = 2
local function take()
  cursor = cursor + 1
  return ARGV[cursor - 1]
end

local function write_hash(key, count)
  for first = cursor, cursor + count - 1, CHUNK do
    local last = math.min(first + CHUNK, cursor + count) - 1
    redis.call('HSET', key, unpack(ARGV, first, last))
  end
  cursor = cursor + count
end

local function write_stream(key, count)
  for _ = 1, count do
    local id, values = take(), tonumber(take())
    redis.call('XADD', key, id, unpack(ARGV, cursor, cursor + values - 1))
    cursor = cursor + values
  end
end

for i = FIRST, #KEYS do
  local kind, count = take(), tonumber(take())
  redis.call('DEL', KEYS[i])
  if kind == 'hash' then write_hash(KEYS[i], count)
  elseif kind == 'stream' then write_stream(KEYS[i], count) end
end
redis.call('DEL', ARCHIVE)
return 1
