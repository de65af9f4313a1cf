-- documents.lua: what the verbs for documents share. After log.lua.

-- Set or unset ("") the fields that an operation's options name.
local function set_fields(operation)
  local first = operation + OPTIONS + 1
  for i = first, first + 3 * tonumber(ARGV[operation + OPTIONS]) - 1, 3 do
    local key, field, value = DOCUMENTS[ARGV[i]], ARGV[i + 1], ARGV[i + 2]
    if key and value == '' then redis.call('HDEL', key, field)
    elseif key then redis.call('HSET', key, field, value) end
  end
end
