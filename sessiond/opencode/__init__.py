"""opencode: what its events mean in a session's log, its database, and the plugin in it."""
