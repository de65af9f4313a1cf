-- part.put: a part of a message, new or replaced. id is "<message id>/<part id>".
--   errors: not-found (no such message, or the part was removed), version-mismatch

verbs['part.put'] = {
  check = function(operation, group)
    local id = ARGV[operation + ID]
    local message_id = string.match(id, '^[^/]+')
    local message = read_index(MESSAGES, message_id)
    if message and message.removed or not message and not (group and group[message_id]) then
      return 'not-found', message_id
    end
    local part = read_index(PARTS, id)
    if part and part.removed then return 'not-found', id end
    if part then return check_expected(operation, part) end
    return check_not_written(operation)
  end,
  write = function(operation)
    write_index(PARTS, ARGV[operation + ID])
  end,
}
