-- session.create: the first operation of a log; its options fill the documents.
--   errors: already-exists (whatever its content: the caller compares), foreign-keys

verbs['session.create'] = {
  check = function()
    if session.status then return 'already-exists', '1' end
    if redis.call('EXISTS', unpack(KEYS)) > 0 then return 'foreign-keys', KEYS[1] end
  end,
  write = function(operation)
    set_fields(operation)
    for _, key in pairs(DOCUMENTS) do redis.call('HSET', key, '_version', position()) end
    session.workspace = redis.call('HGET', METADATA, 'workspace')
    session.status = 'active'
  end,
}
