-- records.lua: what the verbs for messages and parts share. After log.lua.
-- A record's index value: "first [last [removed]]" offsets.

local function read_index(key, id)
  local value = redis.call('HGET', key, id)
  if not value then return nil end
  local first, last, removed = string.match(value, '^(%d+) ?(%d*) ?(%a*)$')
  if last == '' then last = first end
  return { first = first, last = last, removed = removed ~= '' }
end

local function write_index(key, id, removed)
  local record = read_index(key, id)
  local value = string.format('%d', session.version)
  if record or removed then value = (record and record.first or value) .. ' ' .. value end
  redis.call('HSET', key, id, removed and value .. ' removed' or value)
  session.amendments = session.amendments + 1
end

-- An expected version is "epoch:offset", or an offset alone when a person typed it.
local function check_expected(operation, record)
  local expected = option(operation, 'expected')
  if not expected or expected == record.last then return nil end
  local known_epoch = epoch_at(tonumber(record.last))
  local current = (known_epoch and known_epoch .. ':' or '') .. record.last
  if expected ~= current then return 'version-mismatch', current end
end

-- Of a part without writings of its own the expected version is "0".
local function check_not_written(operation)
  local expected = option(operation, 'expected')
  if expected and expected ~= '0' then return 'version-mismatch', '0' end
end
