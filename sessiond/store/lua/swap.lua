-- swap.lua: put what a repair prepared in the place of what it was made from, and move that aside.
--
-- KEYS     1 metadata      hash    2 conversation  stream
--          then for each key that is replaced three: the key, what was prepared, where it goes
-- ARGV     1 type of the metadata, 2 its epoch, 3 its version, as the repair found them
--          4 type of the conversation, 5 its last id, 6 its length
--          then for each key "put", or "move" where nothing takes its place
-- returns  1; 0 when somebody wrote meanwhile, what was prepared is gone, or something lies where the
--          old keys are to go: then nothing was done

local function kind(key) return redis.call('TYPE', key).ok end

local function metadata_stands()
  if kind(KEYS[1]) ~= ARGV[1] then return false end
  if ARGV[1] ~= 'hash' then return true end
  local found = redis.call('HMGET', KEYS[1], 'epoch', 'version')
  return (found[1] or '') == ARGV[2] and (found[2] or '') == ARGV[3]
end

local function conversation_stands()
  if kind(KEYS[2]) ~= ARGV[4] then return false end
  if ARGV[4] ~= 'stream' then return true end
  local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
  return (last and last[1] or '') == ARGV[5] and redis.call('XLEN', KEYS[2]) == tonumber(ARGV[6])
end

if not (metadata_stands() and conversation_stands()) then return 0 end
for i = 3, #KEYS, 3 do
  if ARGV[6 + i / 3] == 'put' and redis.call('EXISTS', KEYS[i + 1]) == 0 then return 0 end
  if redis.call('EXISTS', KEYS[i + 2]) == 1 then return 0 end
end
for i = 3, #KEYS, 3 do
  local key, prepared, aside = KEYS[i], KEYS[i + 1], KEYS[i + 2]
  if redis.call('EXISTS', key) == 1 then redis.call('RENAME', key, aside) end
  if ARGV[6 + i / 3] == 'put' then
    redis.call('RENAME', prepared, key)
    redis.call('PERSIST', key)
  end
end
return 1
