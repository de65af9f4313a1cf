-- documents.lua: what the verbs for documents share. After log.lua.

-- Set or unset ("-document") the fields that an operation's options name.
local function set_fields(operation)
  local first = operation + OPTIONS + 1
  for i = first, first + 3 * tonumber(ARGV[operation + OPTIONS]) - 1, 3 do
    local set, unset = DOCUMENTS[ARGV[i]], DOCUMENTS[string.sub(ARGV[i], 2)]
    if set then redis.call('HSET', set, ARGV[i + 1], ARGV[i + 2])
    elseif unset then redis.call('HDEL', unset, ARGV[i + 1]) end
  end
end
