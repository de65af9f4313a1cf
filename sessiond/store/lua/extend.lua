-- extend.lua: put back what Redis lost of a session's log, as it was, behind what is left of it.
-- Follows content.lua.
--
-- KEYS     see log.lua
-- ARGV     1 epoch and 2 version of where the log ends; both "" where nothing is left of the session
--          3… what comes to conflicts, conversation, messages, parts and applied, and all that
--          context, preferences and metadata hold then: see content.lua
-- returns  1, or 0 when the log does not end there: then nothing was done
-- errors   where a key is none of ours, or has entries behind that end: nothing was done either

local METADATA, CONVERSATION, MESSAGES, PARTS, APPLIED = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local CONTEXT, PREFERENCES, CONFLICTS, BLOCKS = KEYS[6], KEYS[7], KEYS[8], KEYS[9]

local function is_at_the_end()
  if ARGV[1] == '' then return redis.call('EXISTS', unpack(KEYS)) == 0 end
  local found = redis.call('HMGET', METADATA, 'status', 'epoch', 'version', 'archive')
  return found[1] == 'active' and found[2] == ARGV[1] and found[3] == ARGV[2] and not found[4]
end

local function goes_on(key)
  local last = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
  return last and tonumber(string.match(last[1], '^%d+')) > tonumber(ARGV[2])
end

if not is_at_the_end() then return 0 end
if ARGV[1] ~= '' then
  for _, key in ipairs({ MESSAGES, PARTS, APPLIED, CONTEXT, PREFERENCES }) do redis.call('HLEN', key) end
  if goes_on(CONVERSATION) or goes_on(CONFLICTS) or goes_on(BLOCKS) then
    return redis.error_reply('ERR entries stand behind the end of this log')
  end
end

-- A Redis that is full refuses only the first write: it must be one that takes memory.
local place = add_contents({ CONFLICTS, CONVERSATION, MESSAGES, PARTS, APPLIED }, 3)
redis.call('DEL', CONTEXT, PREFERENCES, METADATA)
add_contents({ CONTEXT, PREFERENCES, METADATA }, place)
return 1
