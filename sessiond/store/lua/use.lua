-- use.lua: who uses a session now. A prelude, not a script of its own.

local PRESENCE_ENTRY = '^%d+ %d+ (%d+) '  -- see presence.lua: since, seen, until, what it says

local function server_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

local function has_turn(lease, now)
  local held = redis.call('HMGET', lease, 'instance', 'until_ms')
  return (held[1] or '') ~= '' and tonumber(held[2] or 0) > now
end

local function is_present(presence, now)
  local entries = redis.call('HGETALL', presence)
  for i = 2, #entries, 2 do
    local until_ms = string.match(entries[i], PRESENCE_ENTRY)
    if until_ms and tonumber(until_ms) > now then return true end
  end
  return false
end
