-- document.change: fields of one document (id: metadata, context or preferences) set or unset.
--   errors: version-mismatch with the current version

verbs['document.change'] = {
  check = function(operation)
    local current = redis.call('HGET', DOCUMENTS[ARGV[operation + ID]], '_version') or ''
    local expected = option(operation, 'expected')
    if expected and expected ~= current and expected ~= string.match(current, '%d+$') then
      return 'version-mismatch', current
    end
  end,
  write = function(operation)
    set_fields(operation)
    redis.call('HSET', DOCUMENTS[ARGV[operation + ID]], '_version', position())
  end,
}
