-- cache.lua: what tools answered, for all instances of a session. Bounded: what was not used the
-- longest goes first.
--
-- KEYS     1 hash of the cache: key of a call ->
--              "<expires_ms> <stored_ms> <digest> <json|zstd> <answer>";
--              _counts -> "<bytes> <uses> <hits> <misses> <stale> <evicted>"
--          2 sorted set: key of a call -> number of its last use
--          3 hash of the session's metadata: status
-- ARGV     1 "get", "put", "drop", "clear", "look" or "order"
--          2 how long an answer is kept, in ms; the whole cache goes when it is not asked so long
--          get:  hits that are to be counted besides; pairs of a key and the digest of what the answer depends on, as it is now
--          put:  key, digest, "json" or "zstd", answer, most bytes, most entries
--          drop: what the keys of the answers begin with that are to go
--          look: none, or keys
--          order: how many at most
-- returns  verdict: "ok"; "gone", there is no such session, and its status if it was one;
--          get:  for each pair: "hit", "stale" or "miss", and the entry of a hit ("" for none)
--          drop, clear: how many went
--          order: the keys that were used last, the latest at the end
--          look: counts, then a key and its entry each: of all, the latest used first, or of some
--
-- An entry that is past its time is none. A stale one stays: for another machine, with another
-- branch in its folder, it may be right. Time is the server's. Answers pass through unread.

local CACHE, USES, METADATA = KEYS[1], KEYS[2], KEYS[3]
local COUNTS = '_counts'
local ENTRY = '^(%d+) %d+ (%w+) %l+ '
local verb, life = ARGV[1], tonumber(ARGV[2])

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

local status = redis.call('HGET', METADATA, 'status')
if not status or status == 'deleted' then
  redis.call('DEL', CACHE, USES)
  return { 'gone', status or '' }
end

local bytes, uses, hits, misses, stale, evicted =
  string.match(redis.call('HGET', CACHE, COUNTS) or '', '^(%d+) (%d+) (%d+) (%d+) (%d+) (%d+)$')
bytes, uses, hits = tonumber(bytes or 0), tonumber(uses or 0), tonumber(hits or 0)
misses, stale, evicted = tonumber(misses or 0), tonumber(stale or 0), tonumber(evicted or 0)

local function counts()
  return string.format('%d %d %d %d %d %d', bytes, uses, hits, misses, stale, evicted)
end

local function remove(key)
  local entry = redis.call('HGET', CACHE, key)
  if entry then bytes = math.max(0, bytes - #entry - #key) end
  redis.call('HDEL', CACHE, key)
  redis.call('ZREM', USES, key)
end

local function living(key)
  local entry = redis.call('HGET', CACHE, key)
  local expires, digest = string.match(entry or '', ENTRY)
  if expires and tonumber(expires) > now then return entry, digest end
  if entry then remove(key) end
end

local function touch(key)
  uses = uses + 1
  redis.call('ZADD', USES, uses, key)
end

local answer = { 'ok' }

if verb == 'get' then
  hits = hits + tonumber(ARGV[3])
  for i = 4, #ARGV, 2 do
    local entry, digest = living(ARGV[i])
    local outcome = entry and (digest == ARGV[i + 1] and 'hit' or 'stale') or 'miss'
    if outcome == 'hit' then
      hits = hits + 1
      touch(ARGV[i])
    elseif outcome == 'stale' then
      stale = stale + 1
    else
      misses = misses + 1
    end
    answer[#answer + 1] = outcome
    answer[#answer + 1] = outcome == 'hit' and entry or ''
  end
elseif verb == 'put' then
  local key, digest, encoding, value = ARGV[3], ARGV[4], ARGV[5], ARGV[6]
  local most_bytes, most = tonumber(ARGV[7]), tonumber(ARGV[8])
  local entry = string.format('%d %d ', now + life, now) .. digest .. ' ' .. encoding .. ' ' .. value
  remove(key)
  while bytes + #entry + #key > most_bytes or redis.call('ZCARD', USES) >= most do
    local oldest = redis.call('ZRANGE', USES, 0, 0)[1]
    if not oldest then break end
    remove(oldest)
    evicted = evicted + 1
  end
  redis.call('HSET', CACHE, key, entry)
  bytes = bytes + #entry + #key
  touch(key)
elseif verb == 'drop' then
  local subjects, dropped = {}, 0
  for i = 3, #ARGV do subjects[ARGV[i]] = true end
  for _, key in ipairs(redis.call('ZRANGE', USES, 0, -1)) do
    if subjects[key] or subjects[string.match(key, '^[^.]*')] then
      remove(key)
      dropped = dropped + 1
    end
  end
  answer[2] = dropped
elseif verb == 'clear' then
  answer[2] = redis.call('ZCARD', USES)
  redis.call('DEL', CACHE, USES)
  return answer
elseif verb == 'order' then
  for _, key in ipairs(redis.call('ZRANGE', USES, -tonumber(ARGV[3]), -1)) do
    answer[#answer + 1] = key
  end
elseif verb == 'look' then
  local keys = { unpack(ARGV, 3) }
  if #keys == 0 then keys = redis.call('ZREVRANGE', USES, 0, -1) end
  answer[2] = ''
  for _, key in ipairs(keys) do
    local entry = living(key)
    if entry then
      answer[#answer + 1] = key
      answer[#answer + 1] = entry
    end
  end
  answer[2] = counts()
end

if verb == 'get' or verb == 'put' or redis.call('EXISTS', CACHE) == 1 then
  redis.call('HSET', CACHE, COUNTS, counts())
  redis.call('PEXPIRE', CACHE, life)
  redis.call('PEXPIRE', USES, life)
end
return answer
