-- message.append: a new message. Appends commute: they carry no expected version and take the
-- next offset.
--   errors: already-exists with the offset where that message id was first written

verbs['message.append'] = {
  check = function(operation, appended)
    local id = ARGV[operation + ID]
    local known = redis.call('HGET', MESSAGES, id)
    if known then return 'already-exists', string.match(known, '^%d+') end
    if appended then
      if appended[id] then return 'invalid-input', 'the group has the message id ' .. id .. ' twice' end
      appended[id] = true
    end
  end,
  write = function(operation)
    redis.call('HSET', MESSAGES, ARGV[operation + ID], string.format('%d', session.version))
    session.total_messages = session.total_messages + 1
  end,
}
