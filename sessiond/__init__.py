"""sessiond: one conversation, many opencodes. Sessions in Redis, in step everywhere."""

__version__ = "0.1.0"
