-- conflict.record: what a merge left out of its result; its options hold both sides. id is the
-- document, the message or the part.

verbs['conflict.record'] = {
  check = function() end,
  write = note_conflict,
}
