"""The embedded server: a Redis or Valkey that the daemon starts, watches and stops."""
