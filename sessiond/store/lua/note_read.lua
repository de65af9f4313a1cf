-- note_read.lua: note that somebody read a session.
--
-- KEYS     1 metadata  hash    2 reads  hash
-- ARGV     1 when, in ms    2 how long that is kept, in ms
-- returns  1, or 0 where there is no session, or no more

local status = redis.call('HGET', KEYS[1], 'status')
if not status or status == 'deleted' then return 0 end
redis.call('HSET', KEYS[2], 'read_ms', ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return 1
