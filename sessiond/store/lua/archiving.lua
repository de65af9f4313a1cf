-- archiving.lua: what capturing a session and archiving it share. A prelude, not a script of its own.
--
-- KEYS  1 metadata  hash      2 lease  hash: see lease.lua     3 presence  hash: see presence.lua
--       4 archive   hash      packed: the archive, where no folder has it
--       5… all keys that an archive holds, metadata among them

local METADATA, LEASE, PRESENCE, ARCHIVE = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local FIRST = 5
local SIZES = { hash = 'HLEN', stream = 'XLEN' }

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

-- Why the session must stay, and a detail; nil when nothing keeps it.
local function obstacle()
  local status, place = unpack(redis.call('HMGET', METADATA, 'status', 'archive'))
  if not status then return 'not-found', '' end
  if status == 'deleted' then return 'session-deleted', '' end
  if place then return 'archived', place end
  local turn = redis.call('HMGET', LEASE, 'instance', 'until_ms')
  if turn[1] and turn[1] ~= '' and tonumber(turn[2] or 0) > now then return 'turn', turn[1] end
  local present = redis.call('HGETALL', PRESENCE)
  for i = 1, #present, 2 do
    local until_ms = tonumber(string.match(present[i + 1], '^%d+ %d+ (%d+) ') or 0)
    if until_ms > now then return 'present', present[i] end
  end
end

-- A text that is another after every change: where the log ends, and how much each key holds.
local function standing()
  local position = redis.call('HMGET', METADATA, 'epoch', 'version')
  local words = { position[1] or '', position[2] or '' }
  for i = FIRST, #KEYS do
    local size = SIZES[redis.call('TYPE', KEYS[i]).ok]
    words[#words + 1] = size and string.format('%d', redis.call(size, KEYS[i])) or '-'
  end
  return table.concat(words, ' ')
end
