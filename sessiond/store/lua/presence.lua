-- presence.lua: who is at a session, and what each says of itself.
--
-- KEYS     1 hash of the presence: instance -> "<since_ms> <seen_ms> <until_ms> <json>"
--          2 hash of the session's metadata: status, workspace
--          3 hash of the turn's lease: instance, until_ms
-- ARGV     1 "announce", "leave" or "look"
--          2 instance (announce, leave)
--          3 how long an announcement counts that is not repeated, in ms (announce)
--          4 json: what the instance says of itself (announce); the caller keeps it to 16 KiB
-- returns  verdict: "ok"; "gone", there is no such session or no more; "full", too many are there;
--          with "ok" also: workspace, who runs the turn ("" for nobody),
--          list of what changed: three values each, "came", "changed", "left" or "lost", the
--          instance and what its entry holds or held,
--          list of who is there: two values each, the instance and what its entry holds
--
-- An entry says itself until when it counts, so daemons with different options agree on it. Every
-- call takes out the entries that count no more: whoever is told of one as "lost" is the only one.
-- Time is the server's. The JSON passes through unread: cjson would make {} of [].

local PRESENCE, METADATA, LEASE = KEYS[1], KEYS[2], KEYS[3]
local verb, instance, life, json = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local KEPT_MS = 24 * 3600 * 1000
local MOST = 256
local ENTRY = '^(%d+) (%d+) (%d+) (.*)$'

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local session = redis.call('HMGET', METADATA, 'status', 'workspace')
local turn = redis.call('HMGET', LEASE, 'instance', 'until_ms')
local fields = redis.call('HGETALL', PRESENCE)

if not session[1] or session[1] == 'deleted' then
  redis.call('DEL', PRESENCE)
  return { 'gone' }
end

local entries, count, changes = {}, 0, {}

local function changed(how, who, value)
  changes[#changes + 1] = how
  changes[#changes + 1] = who
  changes[#changes + 1] = value
end

local stale = {}
for i = 1, #fields, 2 do
  local _, _, until_ms = string.match(fields[i + 1], ENTRY)
  if until_ms and tonumber(until_ms) > now then
    entries[fields[i]] = fields[i + 1]
    count = count + 1
  else
    stale[#stale + 1] = fields[i]
    changed('lost', fields[i], fields[i + 1])
  end
end

local mine = entries[instance]
if verb == 'announce' and not mine and count >= MOST then return { 'full' } end

for i = 1, #stale do redis.call('HDEL', PRESENCE, stale[i]) end
if verb == 'announce' then
  local since, _, _, before = string.match(mine or '', ENTRY)
  since = math.min(tonumber(since) or now, now)
  local value = string.format('%d %d %d ', since, now, now + life) .. json
  redis.call('HSET', PRESENCE, instance, value)
  redis.call('PEXPIRE', PRESENCE, KEPT_MS)
  entries[instance] = value
  if before ~= json then changed(mine and 'changed' or 'came', instance, value) end
elseif verb == 'leave' and mine then
  redis.call('HDEL', PRESENCE, instance)
  entries[instance] = nil
  changed('left', instance, mine)
end

local present = {}
for who, value in pairs(entries) do
  present[#present + 1] = who
  present[#present + 1] = value
end
local answering = turn[1] and tonumber(turn[2] or 0) > now and turn[1] or ''
return { 'ok', session[2] or '', answering, changes, present }
