"""Rules of the whole life of a session: decided without input or output, `now` is given."""
