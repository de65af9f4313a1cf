-- conflicts.lua: what the verbs for conflicts share. After log.lua.

-- Write the fields that an operation's options "conflict" name into the stream of conflicts, under
-- the operation's own offset: that is the conflict's number.
local function note_conflict(operation)
  local fields = {}
  local first = operation + OPTIONS + 1
  for i = first, first + 3 * tonumber(ARGV[operation + OPTIONS]) - 1, 3 do
    if ARGV[i] == 'conflict' then
      fields[#fields + 1], fields[#fields + 2] = ARGV[i + 1], ARGV[i + 2]
    end
  end
  redis.call('XADD', CONFLICTS, string.format('%d-0', session.version), unpack(fields))
end
