-- change_preferences.lua: put a user's preferences in the place of those that somebody read.
--
-- KEYS     1 preferences  hash    2 changes  hash
-- ARGV     1 position of the changes that were read, empty for none    2 the new one
--          3 all changes, in JSON    then of each preference its name and its JSON
-- returns  1; 0 when somebody wrote meanwhile: then nothing was done

if (redis.call('HGET', KEYS[2], 'position') or '') ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
for i = 4, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
end
redis.call('HSET', KEYS[2], 'position', ARGV[2], 'changes', ARGV[3])
return 1
