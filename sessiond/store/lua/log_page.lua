-- log_page.lua: a stretch of a log whose beginning is compressed, all of one moment.
--
-- KEYS     1 conversation  stream    2 blocks  stream
-- ARGV     1 offset of the first entry    2 how many entries are wanted
-- returns  list of the blocks that hold the first of them, as XRANGE gives them; the first block may
--          begin earlier, the last one end later
--          list of the entries that follow, as XRANGE gives them

local CONVERSATION, BLOCKS = KEYS[1], KEYS[2]
local offset, wanted = tonumber(ARGV[1]), tonumber(ARGV[2])
local blocks = {}

while wanted > 0 do
  local id = string.format('%d-0', offset)
  local block = redis.call('XRANGE', BLOCKS, id, '+', 'COUNT', 1)[1]
  if not block then
    return { blocks, redis.call('XRANGE', CONVERSATION, id, '+', 'COUNT', wanted) }
  end
  blocks[#blocks + 1] = block
  local following = tonumber(string.match(block[1], '^%d+')) + 1
  wanted, offset = wanted - (following - offset), following
end
return { blocks, {} }
