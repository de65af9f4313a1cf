"""The Lua scripts: loaded once, run by digest, sent again when the server forgot them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import Any

from redis.exceptions import NoScriptError

Execute = Callable[..., Awaitable[Any]]
_FILES = {
    "session.create": ("documents", "create"),
    "message.append": ("append",),
    "message.edit": ("records", "edit"),
    "message.remove": ("records", "remove"),
    "part.put": ("records", "put_part"),
    "part.remove": ("records", "remove_part"),
    "document.change": ("documents", "change"),
    "session.delete": ("use", "delete"),
    "conflict.record": ("conflicts", "record_conflict"),
    "conflict.resolve": ("conflicts", "resolve_conflict"),
}
OPERATIONS = frozenset(_FILES)
"""Every operation that a log can hold."""


def _read(name: str) -> str:
    return (files(__package__) / "lua" / f"{name}.lua").read_text(encoding="utf-8")


class Script:
    """One script. Content-addressed, so different versions of sessiond can share a server."""

    def __init__(self, *sources: str) -> None:
        self.text = "\n".join(sources)
        self.digest = sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    async def run(
        self, execute: Execute, keys: Sequence[str], arguments: Sequence[Any] = ()
    ) -> Any:
        """Run it atomically on the server; `execute` sends a command.

        Raises:
            redis.exceptions.RedisError: as the connection or the script raised it.
        """
        try:
            return await execute("EVALSHA", self.digest, len(keys), *keys, *arguments)
        except NoScriptError:  # a new server, a failover, SCRIPT FLUSH: EVAL loads it again
            return await execute("EVAL", self.text, len(keys), *keys, *arguments)


# All at once, before anything runs: a daemon must not pick up half of an upgrade.
_SOURCES = {
    name: _read(name)
    for name in dict.fromkeys(
        (
            *("log", "commit", "snapshot", "lease", "presence", "keep_refused", "drop_conflicts"),
            *("compress", "log_page", "archiving", "capture", "archive", "content", "restore"),
            *("facts", "note_read", "janitor"),
            "cache",
            *("swap", "extend"),
            "change_preferences",
            *(name for names in _FILES.values() for name in names),
        )
    )
}

SNAPSHOT = Script(_SOURCES["snapshot"])
LEASE = Script(_SOURCES["lease"])
KEEP_REFUSED = Script(_SOURCES["keep_refused"])
DROP_CONFLICTS = Script(_SOURCES["drop_conflicts"])
PRESENCE = Script(_SOURCES["presence"])
COMPRESS = Script(_SOURCES["compress"])
LOG_PAGE = Script(_SOURCES["log_page"])
CAPTURE = Script(_SOURCES["archiving"], _SOURCES["capture"])
ARCHIVE = Script(_SOURCES["archiving"], _SOURCES["archive"])
RESTORE = Script(_SOURCES["archiving"], _SOURCES["content"], _SOURCES["restore"])
FACTS = Script(_SOURCES["use"], _SOURCES["facts"])
NOTE_READ = Script(_SOURCES["note_read"])
JANITOR = Script(_SOURCES["janitor"])
CACHE = Script(_SOURCES["cache"])
SWAP = Script(_SOURCES["swap"])
EXTEND = Script(_SOURCES["content"], _SOURCES["extend"])
CHANGE_PREFERENCES = Script(_SOURCES["change_preferences"])


@cache
def commit_script(operations: frozenset[str]) -> Script:
    """Return the commit script for a call with these operations.

    Only the verbs it needs are part of it: setting up all of them would cost a single append
    a third more time in the server.
    """
    names = dict.fromkeys(name for op in sorted(operations) for name in _FILES[op])
    return Script(*(_SOURCES[name] for name in ("log", *names, "commit")))
