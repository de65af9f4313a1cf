-- session.delete: everything of the session goes, but for a tombstone in its metadata and this
-- operation as the log's only entry, so that readers learn of it and its id is never used again.
-- What whoever deletes had not seen (options "kept") stays in the stream of conflicts. Follows use.lua.
--   KEYS, the last three of all: lease, presence, reads
--   option "idle", until_ms, used_ms: only until then, only where nobody is at the session, runs a
--     turn or has read it since used_ms, and only where no opencode has it
--   errors: version-mismatch with the session's position; with "idle": janitor-late, in-use,
--     of-opencode

local LEASE, PRESENCE, READS = KEYS[#KEYS - 2], KEYS[#KEYS - 1], KEYS[#KEYS]

verbs['session.delete'] = {
  check = function(operation)
    local expected = option(operation, 'expected')
    if expected and expected ~= position() and expected ~= tostring(session.version) then
      return 'version-mismatch', position()
    end
    local until_ms, used_ms = option(operation, 'idle')
    if not until_ms then return nil end
    local now = server_ms()
    if now >= tonumber(until_ms) then return 'janitor-late', ARGV[operation + ID] end
    if has_turn(LEASE, now) or is_present(PRESENCE, now)
      or tonumber(redis.call('HGET', READS, 'read_ms') or 0) > tonumber(used_ms) then
      return 'in-use', ARGV[operation + ID]
    end
    if redis.call('HEXISTS', DOCUMENTS.context, 'opencode') == 1 then
      return 'of-opencode', ARGV[operation + ID]
    end
  end,
  write = function(operation)
    redis.call('DEL', READS, unpack(KEYS, 1, #KEYS - 3))
    redis.call('HSET', METADATA, 'session_id', ARGV[operation + ID], 'status', 'deleted',
      'workspace', session.workspace, 'deleted_at', ARGV[operation + AT],
      'deleted_by', ARGV[operation + ORIGIN])
    local first, kept = operation + OPTIONS + 1, 0
    for i = first, first + 3 * tonumber(ARGV[operation + OPTIONS]) - 1, 3 do
      if ARGV[i] == 'kept' then
        local document, id = string.match(ARGV[i + 1], '^(%S+) (.*)$')
        redis.call('XADD', CONFLICTS, string.format('%d-%d', session.version, kept),
          'what', 'conflict', 'document', document, 'id', id, 'path', '',
          'strategy', 'deletion', 'outcome', 'ours', 'at', ARGV[operation + AT],
          'json', ARGV[i + 2])
        kept = kept + 1
      end
    end
    session.status = 'deleted'
    session.total_messages, session.amendments = 0, 0
  end,
}
