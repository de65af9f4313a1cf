"""Sessions as JSON files, kept in step both ways."""
