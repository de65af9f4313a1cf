-- content.lua: what keys are to hold, out of the arguments. A prelude, not a script of its own.
--
-- ARGV     for each key its type ("hash", "stream", or "none"), the number of its items, and the
--          items: of a hash field, value, …; of a stream for each entry its id, the number of its
--          values, and name, value, …

local CHUNK = 4000  -- values in one call: Lua's stack is small

local function add_to_hash(key, place, count)
  for first = place, place + count - 1, CHUNK do
    local last = math.min(first + CHUNK, place + count) - 1
    redis.call('HSET', key, unpack(ARGV, first, last))
  end
  return place + count
end

local function add_to_stream(key, place, count)
  for _ = 1, count do
    local id, values = ARGV[place], tonumber(ARGV[place + 1])
    redis.call('XADD', key, id, unpack(ARGV, place + 2, place + 1 + values))
    place = place + 2 + values
  end
  return place
end

-- Add to keys what the arguments from a place on say, in their order; returns the place behind.
local function add_contents(keys, place)
  for _, key in ipairs(keys) do
    local kind, count = ARGV[place], tonumber(ARGV[place + 1])
    place = place + 2
    if kind == 'hash' then place = add_to_hash(key, place, count)
    elseif kind == 'stream' then place = add_to_stream(key, place, count) end
  end
  return place
end
