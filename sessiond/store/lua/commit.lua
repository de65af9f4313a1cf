-- commit.lua: add groups of operations to one session's log, in order, each group whole or not
-- at all. The only script that writes sessions; it runs after log.lua and the files of the verbs
-- that the call needs.
--
-- KEYS     see log.lua; with a session.delete three more, see there
-- ARGV     1 session id
--          2 channel of its events
--          3 pattern of the workspace's channel, with %s for the workspace
--          4 writer
--          5 sequence of the first operation; the others follow it without a gap
--          6 0, or a sequence that must have been applied: one that this writer knows to be there
--            (else Redis went back), or that of a call which was not answered when this one left,
--            and which must come first; or a position that the log must have: what the writer's
--            journal has from before, until something was applied in this life
--          7 number of groups; then for each group: the number of its operations, and for each
--            op, id, at, hash (7 bytes), json, origin, number of its options,
--            and for each option three values:
--              "expected", version, ""     the version that the change is based on
--              "key", name, digest         an idempotency key and what it is used for
--              "mark", name, "before now"  how far the writer's source was written when this was
--                                          put together ("-": not at all), and is with it
--              document, field, value      a field of a document to set
--              "-document", field, ""      a field of a document to unset
--              "conflict", field, value    a field of a conflict's entry
--              "kept", "document id", json what goes unseen with the session: see session.delete
--              "idle", until_ms, used_ms   only while nobody uses the session: see session.delete
-- returns  one flat list: workspace, then for each group one of
--            "ok", offset of its first operation, epoch of each operation
--            "duplicate", the same: it was applied before
--            "error", code, detail
-- errors   see the verbs; for all: not-found, session-deleted, superseded, sequence-reused, key-used,
--          mark-moved
--          as error reply: ARCHIVED when only the stub of the session is there,
--          OUTOFORDER when what ARGV 6 names is not
--
-- Lua never rolls back: a group is checked wholly before its first write.

local SESSION_ID, WRITER = ARGV[1], ARGV[4]
local DEDUPE_WINDOW = 2048  -- writers and keys remembered per session
local LARGEST_CALL = 4096   -- operations in one call: sync.batch_operations, or one large group

-- What several operations of one group may be: none of them undoes what another one relies on. What
-- came of a merge may begin a group: behind it stand only the conflicts that it left, and changes
-- of documents that were merged upon it.
local CONFLICT = { ['conflict.record'] = true, ['conflict.resolve'] = true }
local TOGETHER = { ['message.append'] = true, ['message.edit'] = true, ['part.put'] = true }
local MERGED = { ['document.change'] = true, ['message.remove'] = true, ['part.remove'] = true }

local function may_stand(group, place)
  local op, first = ARGV[group[place] + OP], ARGV[group[1] + OP]
  return CONFLICT[op] or TOGETHER[op] and not MERGED[first] or MERGED[op] and place == 1
    or op == 'document.change' and first == op
end

if session.archive then return redis.error_reply('ARCHIVED the session is to be brought back first') end
redis.call('XLEN', CONVERSATION)  -- fails before anything is written where these are no streams
redis.call('XLEN', BLOCKS)
local known_writer = redis.call('HGET', APPLIED, WRITER)
local applied_sequence, applied_offset = string.match(known_writer or '0 0', '^(%d+) (%d+)$')
applied_sequence, applied_offset = tonumber(applied_sequence), tonumber(applied_offset)
local function is_there(before)
  local known_epoch, offset = string.match(before, '^(%x*):(%d+)$')
  if not offset then return tonumber(before) <= applied_sequence end
  local found = epoch_at(tonumber(offset))
  return found and (known_epoch == '' or known_epoch == found)
end

if session.status ~= 'deleted' and not is_there(ARGV[6]) then
  return redis.error_reply('OUTOFORDER what came before this call is not there')
end

local reply, replied = { '' }, 1
local first_new = session.version
local last_written
local keys_used = false

local function answer(one, two, three)
  reply[replied + 1], reply[replied + 2], reply[replied + 3] = one, two, three
  replied = replied + (three and 3 or 2)
end

-- A sequence at or below the watermark was decided before: answer what became of the group, if
-- it was applied. What one call wrote are neighbours in the log, so the search is short.
local function answer_applied(group, sequence)
  local function find(operation, wanted)
    local offset = applied_offset
    for _ = 0, math.min(applied_sequence - wanted, LARGEST_CALL) do
      local entry = entry_at(offset)
      if not entry then return nil end
      if entry.origin == ARGV[operation + ORIGIN] then return entry, offset end
      offset = offset - 1
    end
  end
  local found, first = find(group[1], sequence)
  if not found then return false end
  local epochs = {}
  for i = 1, #group do  -- a group's operations stand one behind the other
    local operation = group[i]
    local entry = i == 1 and found or entry_at(first + i - 1)
    if not entry or entry.origin ~= ARGV[operation + ORIGIN] then return false end
    if entry.json ~= ARGV[operation + JSON] or entry.op ~= ARGV[operation + OP]
      or entry.id ~= ARGV[operation + ID] then
      answer('error', 'sequence-reused', ARGV[operation + ORIGIN])
      return true
    end
    epochs[i] = entry.epoch
  end
  answer('duplicate', first)
  for i = 1, #epochs do reply[replied + i] = epochs[i] end
  replied = replied + #epochs
  return true
end

local function check(operation, group)
  if session.status == 'deleted' then return 'session-deleted', SESSION_ID end
  local op = ARGV[operation + OP]
  if not session.status and op ~= 'session.create' then return 'not-found', SESSION_ID end
  if op ~= 'message.append' then
    store_appended()
    local key = option(operation, 'key')
    if key and redis.call('HEXISTS', APPLIED, key) == 1 then return 'key-used', key end
  end
  local mark, step = option(operation, 'mark')
  if mark then
    local stored = redis.call('HGET', APPLIED, mark) or '-'
    if stored ~= string.match(step, '^%S+') then return 'mark-moved', stored end
  end
  return verbs[op].check(operation, group)
end

local function write(operation)
  local op, id, at, hash, json, origin = unpack(ARGV, operation, operation + ORIGIN)
  advance(hash)
  local known_epoch = epoch()
  if op == 'session.delete' then verbs[op].write(operation) end  -- it empties the log first
  redis.call('XADD', CONVERSATION, string.format('%d-0', session.version),
    'op', op, 'at', at, 'origin', origin, 'id', id, 'epoch', known_epoch, 'json', json)
  if op ~= 'session.delete' then verbs[op].write(operation) end
  replied = replied + 1
  reply[replied] = known_epoch
  local key, digest = option(operation, 'key')
  if key then
    keys_used = true
    redis.call('HSET', APPLIED, key, string.format('%s %d', digest, session.version))
  end
  local mark, step = option(operation, 'mark')
  if mark then redis.call('HSET', APPLIED, mark, string.match(step, '%S+$')) end
  if at > session.last_activity then session.last_activity = at end
  last_written = operation
end

local function commit(group, sequence)
  local late = sequence <= applied_sequence
  if late and answer_applied(group, sequence) then return end
  local ids = group[2] and {} or nil
  for i = 1, #group do
    local code, detail = check(group[i], ids)
    if not code and ids and not may_stand(group, i) then
      code, detail = 'invalid-input', ARGV[group[i] + OP] .. ' cannot be part of a group'
    end
    if code then return answer('error', code, detail) end
  end
  if late then return answer('error', 'superseded', ARGV[group[1] + ORIGIN]) end
  answer('ok', session.version + 1)
  for i = 1, #group do write(group[i]) end
  applied_sequence, applied_offset = sequence + #group - 1, session.version
end

local cursor, sequence = 8, tonumber(ARGV[5])
for _ = 1, tonumber(ARGV[7]) do
  local group = {}
  local size = tonumber(ARGV[cursor])
  cursor = cursor + 1
  for i = 1, size do
    group[i] = cursor
    cursor = cursor + OPTIONS + 1 + 3 * tonumber(ARGV[cursor + OPTIONS])
  end
  commit(group, sequence)
  sequence = sequence + size
end
reply[1] = session.workspace or ''
if not last_written then return reply end

store_appended()
local end_position = position()
redis.call('HSET', METADATA, 'epoch', epoch(), 'version', session.version,
  'last_activity', session.last_activity, 'total_messages', session.total_messages,
  'amendments', session.amendments)
redis.call('HSET', APPLIED, WRITER, string.format('%d %d', applied_sequence, applied_offset))

-- Forget the half of the writers and keys whose last operation is the longest ago.
if (keys_used or not known_writer) and redis.call('HLEN', APPLIED) > DEDUPE_WINDOW then
  local remembered = redis.call('HGETALL', APPLIED)
  local ages = {}
  for i = 1, #remembered, 2 do
    local age = tonumber(string.match(remembered[i + 1], ' (%d+)$'))  -- a mark has none, and stays
    if age then ages[#ages + 1] = { field = remembered[i], offset = age } end
  end
  table.sort(ages, function(one, other) return one.offset < other.offset end)
  for i = 1, #ages - DEDUPE_WINDOW / 2 do redis.call('HDEL', APPLIED, ages[i].field) end
end

local publication = '{"session_id":"' .. SESSION_ID .. '","position":"' .. end_position
  .. '","operations":' .. session.version - first_new
  .. ',"last":' .. cjson.encode(ARGV[last_written + OP] .. ' ' .. ARGV[last_written + ID]) .. '}'
redis.call('PUBLISH', ARGV[2], publication)
redis.call('PUBLISH', string.format(ARGV[3], session.workspace), publication)
return reply
