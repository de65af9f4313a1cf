-- message.edit: the whole message anew, under the same id. Its parts are records of their own.
--   errors: not-found, version-mismatch with the current version

verbs['message.edit'] = {
  check = function(operation)
    local record = read_index(MESSAGES, ARGV[operation + ID])
    if not record or record.removed then return 'not-found', ARGV[operation + ID] end
    return check_expected(operation, record)
  end,
  write = function(operation)
    write_index(MESSAGES, ARGV[operation + ID])
  end,
}
