-- message.append: a new message. Appends commute: they carry no expected version and take the
-- next offset.
--   errors: already-exists with the offset where that message id was first written

verbs['message.append'] = {
  check = function(operation, group)
    local id = ARGV[operation + ID]
    local known = appended_ids[id] or redis.call('HGET', MESSAGES, id)
    if known then return 'already-exists', string.match(known, '^%d+') end
    if group then
      if group[id] then return 'invalid-input', 'the group has the message id ' .. id .. ' twice' end
      group[id] = true
    end
  end,
  write = function(operation)
    local id, offset = ARGV[operation + ID], string.format('%d', session.version)
    local size = #appended
    appended[size + 1], appended[size + 2] = id, offset
    appended_ids[id] = offset
    session.total_messages = session.total_messages + 1
  end,
}
