"""Sessions in Redis: the only importer of redis."""
