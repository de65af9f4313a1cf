-- lease.lua: the right to run the next turn of a session, for one holder at a time.
--
-- KEYS     1 hash of the lease: token, instance, machine, since_ms, until_ms
-- ARGV     1 "acquire", "renew" or "release"
--          2 instance
--          3 machine
--          4 how long the right lasts without a renewal, in ms
--          5 token of the holder (renew, release)
-- returns  granted (1 or 0), token, instance, machine, since_ms of who holds it now; an instance
--          of "" for nobody
--
-- The token grows with every new holder and is kept after a release: what an earlier holder sends
-- late is recognised by it. Time is the server's.

local LEASE = KEYS[1]
local verb, instance, machine, ttl, token = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local KEPT_MS = 7 * 24 * 3600 * 1000

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local held = redis.call('HMGET', LEASE, 'token', 'instance', 'machine', 'since_ms', 'until_ms')
local free = not held[2] or held[2] == '' or tonumber(held[5] or 0) <= now
local mine = held[2] == instance

local function answer(granted)
  local found = redis.call('HMGET', LEASE, 'token', 'instance', 'machine', 'since_ms')
  return { granted, tonumber(found[1] or 0), found[2] or '', found[3] or '', tonumber(found[4] or 0) }
end

local function keep(fields)
  redis.call('HSET', LEASE, unpack(fields))
  redis.call('PEXPIRE', LEASE, KEPT_MS)
end

local until_ms = string.format('%d', now + ttl)
if verb == 'acquire' then
  if mine and not free then
    keep({ 'until_ms', until_ms })
    return answer(1)
  end
  if not free then return answer(0) end
  keep({ 'token', string.format('%d', tonumber(held[1] or 0) + 1), 'instance', instance,
    'machine', machine, 'since_ms', string.format('%d', now), 'until_ms', until_ms })
  return answer(1)
end

if not mine or held[1] ~= token then return answer(0) end
if verb == 'renew' then
  keep({ 'until_ms', until_ms })
  return answer(1)
end
keep({ 'instance', '', 'machine', '', 'until_ms', '0' })
return answer(1)
