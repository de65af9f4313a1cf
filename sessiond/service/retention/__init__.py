"""The end of a session's life: compressed, archived, deleted by limits."""
