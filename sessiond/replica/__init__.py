"""This machine's copies of the sessions that were seen here, for when Redis is away.

A cache: what is damaged, or of another version, is thrown away and comes again from Redis.
"""

from __future__ import annotations

from sessiond.replica.file import Copy
from sessiond.replica.replica import Replica

__all__ = ["Copy", "Replica"]
