-- content.lua: taking what keys are to hold from the arguments. A prelude, not a script of its own.
--
-- ARGV     for each key its type ("hash", "stream", or "none"), the number of its items, and the
--          items: of a hash field, value, …; of a stream for each entry its id, the number of its
--          values, and name, value, …

local CHUNK = 4000  -- values in one call: Lua's stack is small

local cursor  -- the place of the next argument; the script sets the first

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

-- Add to a key what the next arguments say.
local function write_content(key)
  local kind, count = take(), tonumber(take())
  if kind == 'hash' then write_hash(key, count)
  elseif kind == 'stream' then write_stream(key, count) end
end
