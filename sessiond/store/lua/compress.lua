-- compress.lua: put the oldest entries of a session's log into a block, and take them out of the
-- stream: both, or nothing where they are not what the caller compressed.
--
-- KEYS     1 metadata  hash    2 conversation  stream    3 blocks  stream
-- ARGV     1 offset of the first entry    2 offset of the last    3 epoch of the last
--          4 epochs of all, seven bytes each    5 codec    6 the compressed entries    7 checksum
-- returns  1, or 0 when the stream does not begin with these entries, the blocks do not end right
--          before them, or nothing would be left in the stream
--
-- An epoch is a fingerprint of all entries up to its own, so that of the last one stands for all.

local METADATA, CONVERSATION, BLOCKS = KEYS[1], KEYS[2], KEYS[3]
local first, last = tonumber(ARGV[1]), tonumber(ARGV[2])

local function offset_of(entry)
  return entry and tonumber(string.match(entry[1], '^%d+')) or 0
end

local head = redis.call('HMGET', METADATA, 'status', 'version')
if not head[1] or head[1] == 'deleted' or tonumber(head[2] or 0) <= last then return 0 end
if offset_of(redis.call('XRANGE', CONVERSATION, '-', '+', 'COUNT', 1)[1]) ~= first then return 0 end
if offset_of(redis.call('XREVRANGE', BLOCKS, '+', '-', 'COUNT', 1)[1]) ~= first - 1 then return 0 end

local id = string.format('%d-0', last)
local entry = redis.call('XRANGE', CONVERSATION, id, id)[1]
local known_epoch
for i = 1, entry and #entry[2] or 0, 2 do
  if entry[2][i] == 'epoch' then known_epoch = entry[2][i + 1] end
end
if known_epoch ~= ARGV[3] then return 0 end

redis.call('XADD', BLOCKS, id, 'epochs', ARGV[4], 'codec', ARGV[5], 'data', ARGV[6],
  'checksum', ARGV[7])
redis.call('XTRIM', CONVERSATION, 'MINID', string.format('%d-0', last + 1))
return 1
