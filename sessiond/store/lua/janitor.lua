-- janitor.lua: the right to clean up, for one daemon at a time, and when that was done last.
--
-- KEYS     1 hash: token, instance, until_ms; finished_ms, report
-- ARGV     1 "begin", "renew", "finish" or "look"
--          2 instance
--          3 how long the right lasts without a renewal, in ms (begin, renew)
--          4 token of the holder (renew, finish)
--          5 begin: how long the last clean-up must be over, in ms; 0 for any time
--            finish: the report of what was done, JSON
-- returns  granted (1 or 0), token, until_ms, the server's time, instance of who holds it now ("" for
--          nobody), finished_ms ("" for never), report
--
-- The token grows with every new holder. A step that is done under the right names until_ms, and is
-- refused after that time (delete.lua): whoever has lost the right cannot act. Time is the server's.

local JANITOR = KEYS[1]
local verb, instance, life, token = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local held = redis.call('HMGET', JANITOR, 'token', 'instance', 'until_ms', 'finished_ms')
local free = not held[2] or held[2] == '' or tonumber(held[3] or 0) <= now

local function answer(granted)
  local found = redis.call('HMGET', JANITOR, 'token', 'until_ms', 'instance', 'finished_ms', 'report')
  local holder = tonumber(found[2] or 0) > now and found[3] or ''
  return { granted, tonumber(found[1] or 0), tonumber(found[2] or 0), now, holder, found[4] or '',
    found[5] or '' }
end

local function hold(fields)
  redis.call('HSET', JANITOR, 'until_ms', string.format('%d', now + life), unpack(fields))
  return answer(1)
end

if verb == 'begin' then
  local since = now - tonumber(held[4] or 0)
  local due = not held[4] or since < 0 or since >= tonumber(ARGV[5])  -- below 0: a clock was set
  if not free or not due then return answer(0) end
  return hold({ 'token', string.format('%d', tonumber(held[1] or 0) + 1), 'instance', instance })
end

if verb == 'look' or free or held[1] ~= token then return answer(0) end
if verb == 'renew' then return hold({}) end
redis.call('HSET', JANITOR, 'instance', '', 'until_ms', '0',
  'finished_ms', string.format('%d', now), 'report', ARGV[5])
return answer(1)
