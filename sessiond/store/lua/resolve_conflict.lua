-- conflict.resolve: somebody decided a conflict. id is its number.
--   errors: not-found

verbs['conflict.resolve'] = {
  check = function(operation)
    local id = ARGV[operation + ID] .. '-0'
    if not redis.call('XRANGE', CONFLICTS, id, id)[1] then
      return 'not-found', 'conflict ' .. ARGV[operation + ID]
    end
  end,
  write = note_conflict,
}
