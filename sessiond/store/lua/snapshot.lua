-- snapshot.lua: a session's documents and position, all of one moment.
--
-- KEYS     1 metadata  hash    2 context  hash    3 preferences  hash
-- returns  three flat lists of field, value; the first is empty when there is no such session

return { redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[2]), redis.call('HGETALL', KEYS[3]) }
