-- log.lua: what the verbs of the commit script share. A prelude, not a script of its own.
--
-- KEYS  1 metadata      hash    plain fields; status, epoch and version decide here
--       2 conversation  stream  the log: <offset>-0 -> op at origin id epoch json
--       3 messages      hash    message id -> "first [last [removed]]" offsets
--       4 parts         hash    message id/part id -> the same
--       5 applied       hash    writer -> "sequence offset"; key:<key> -> "digest offset"
--       6 context       hash    field -> JSON; _version
--       7 preferences   hash    field -> JSON; _version
--       8 conflicts     stream  <number>-0 -> what document id path strategy outcome at json
--       9 blocks        stream  <last offset>-0 -> epochs codec data checksum: what is compressed

local METADATA, CONVERSATION, MESSAGES, PARTS, APPLIED = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local CONFLICTS, BLOCKS = KEYS[8], KEYS[9]
local DOCUMENTS = { metadata = KEYS[1], context = KEYS[6], preferences = KEYS[7] }

-- An operation is known by the place of its first argument: ARGV[operation + ID] is its id.
-- Tables of them would cost as much time as the writes.
local OP, ID, AT, HASH, JSON, ORIGIN, OPTIONS = 0, 1, 2, 3, 4, 5, 6

-- What each operation does: op name -> { check =, write = }.
--   check(operation, group) -> nil, or an error code and a detail; writes nothing of its own.
--                              group: message ids that earlier operations of the group append
--   write(operation) -> changes everything but the log entry itself; the session's epoch and
--                       version are already those after the operation
local verbs = {}

-- The session as it stands while this script runs. The epoch (sync/position.py) is kept as its
-- two numbers.
local head = redis.call('HMGET', METADATA,
  'status', 'epoch', 'version', 'workspace', 'total_messages', 'amendments', 'last_activity',
  'archive')
local session = {
  status = head[1],
  lane_one = tonumber(string.sub(head[2] or '0', 1, 7), 16),
  lane_two = tonumber(string.sub(head[2] or '00000000', 8), 16),
  version = tonumber(head[3] or 0),
  workspace = head[4],
  total_messages = tonumber(head[5] or 0),
  amendments = tonumber(head[6] or 0),
  last_activity = head[7] or '',
  archive = head[8],
}

if session.status and not (session.lane_one and session.lane_two and session.version
  and session.workspace and session.total_messages and session.amendments) then
  return redis.error_reply('ERR the metadata of this session is damaged')
end

-- Step to the next operation: the same fold as sync/position.py, exact in doubles. hash is seven
-- bytes: the first three go into one lane, the last four into the other.
local function advance(hash)
  local h1, h2, h3, h4, h5, h6, h7 = string.byte(hash, 1, 7)
  session.lane_one = (session.lane_one * 45678917 + (h1 * 256 + h2) * 256 + h3 + 1) % 67108859
  session.lane_two = (session.lane_two * 52345711
    + ((h4 * 256 + h5) * 256 + h6) * 256 + h7 + 1) % 67108837
  session.version = session.version + 1
end

local function epoch()
  return string.format('%07x%07x', session.lane_one, session.lane_two)
end

local function position()
  return string.format('%s:%d', epoch(), session.version)
end

local function entry_at(offset)
  local id = string.format('%d-0', offset)
  local found = redis.call('XRANGE', CONVERSATION, id, id)[1]
  if not found then return nil end
  local fields = {}
  for i = 1, #found[2], 2 do fields[found[2][i]] = found[2][i + 1] end
  return fields
end

-- The epoch of the entry at an offset, also of one that was compressed; nil where there is none.
local EPOCH_BYTES = 7

local function epoch_at(offset)
  local entry = entry_at(offset)
  if entry then return entry.epoch end
  local block = redis.call('XRANGE', BLOCKS, string.format('%d-0', offset), '+', 'COUNT', 1)[1]
  if not block or block[2][1] ~= 'epochs' then return nil end
  local last, epochs = tonumber(string.match(block[1], '^%d+')), block[2][2]
  local first = #epochs - EPOCH_BYTES * (last - offset + 1) + 1
  if first < 1 then return nil end
  return string.format('%02x%02x%02x%02x%02x%02x%02x', string.byte(epochs, first, first + 6))
end

-- The value (and second value) of one option of an operation; nil without it.
local function option(operation, wanted)
  local options = ARGV[operation + OPTIONS]
  if options == '0' then return nil end
  local first = operation + OPTIONS + 1
  for i = first, first + 3 * tonumber(options) - 1, 3 do
    if ARGV[i] == wanted then return ARGV[i + 1], ARGV[i + 2] end
  end
end

-- Messages appended by this call: their index entries are stored by one command, before anything
-- else reads the index, and at the end of the call.
local appended, appended_ids = {}, {}

local function store_appended()
  if #appended == 0 then return end
  redis.call('HSET', MESSAGES, unpack(appended))
  appended, appended_ids = {}, {}
end
