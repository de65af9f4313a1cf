"""Events as they happen, for all who watch."""
