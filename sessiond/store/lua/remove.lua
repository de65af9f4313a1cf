-- message.remove: the message leaves the conversation; its index entry stays, so that a late
-- retry of its append is still recognised.
--   errors: not-found, version-mismatch with the current version

verbs['message.remove'] = {
  check = function(operation)
    local record = read_index(MESSAGES, ARGV[operation + ID])
    if not record or record.removed then return 'not-found', ARGV[operation + ID] end
    return check_expected(operation, record)
  end,
  write = function(operation)
    write_index(MESSAGES, ARGV[operation + ID], true)
    session.total_messages = session.total_messages - 1
  end,
}
