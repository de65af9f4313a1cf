-- part.remove: a part leaves its message. A part that came inside its message has no index entry
-- yet: the caller has seen that it is there, the removal is its first.
--   errors: not-found, version-mismatch with the current version

verbs['part.remove'] = {
  check = function(operation)
    local id = ARGV[operation + ID]
    local message = read_index(MESSAGES, string.match(id, '^[^/]+'))
    local part = read_index(PARTS, id)
    if not message or message.removed or part and part.removed then return 'not-found', id end
    if part then return check_expected(operation, part) end
    return check_not_written(operation)
  end,
  write = function(operation)
    write_index(PARTS, ARGV[operation + ID], true)
  end,
}
