-- archive.lua: let a session go that was captured: of its keys only metadata stay, as its stub, and
-- what is said to stay.
--
-- KEYS     see archiving.lua
-- ARGV     1 what it stood at when it was captured    2 when that was, in ms
--          3 how long ago that may be, in ms
--          4 place: where its archive is, "redis" for the key    5 the packed archive; "" elsewhere
--          6 time, for the stub    7 whether an opencode has the session: 1 or 0
--          8 a key that stays as it is, too; "" for none
-- returns  "ok", or why not, and a detail: see archiving.lua; "moved" when it is not what was
--          captured any more, "late" when that was too long ago

local reason, detail = obstacle()
if reason then return { reason, detail } end
if standing() ~= ARGV[1] then return { 'moved', '' } end
if now - tonumber(ARGV[2]) > tonumber(ARGV[3]) then return { 'late', '' } end

if ARGV[5] ~= '' then redis.call('HSET', ARCHIVE, 'packed', ARGV[5]) end
for i = FIRST, #KEYS do
  if KEYS[i] ~= METADATA and KEYS[i] ~= ARGV[8] then redis.call('DEL', KEYS[i]) end
end
redis.call('HSET', METADATA, 'status', 'archived', 'archive', ARGV[4], 'archived_at', ARGV[6],
  'of_opencode', ARGV[7])
return { 'ok', '' }
