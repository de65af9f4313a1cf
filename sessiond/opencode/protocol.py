"""What the plugin inside an opencode and its sidecar say to each other.

The plugin attaches (`PUT /v1/opencode/instances/{instance}`), opens its stream of commands
(`GET …/commands`), pushes opencode's events in the order they happened (`POST …/events`), asks
for the right to run a turn (`POST …/turns`) and reports what became of the commands
(`POST …/applied`).
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from sessiond.model import SessionId, ShortText

Mode = Literal["lease", "atomic", "defer"]
"""How turns of several instances are kept apart.

`lease`: one after the other. `atomic`: at once, and a remote turn comes in only when it is
complete. `defer`: at once, and what is remote comes in when the local turn has ended.
"""


class OpencodeEvent(Struct, kw_only=True):
    """An event as opencode's hooks and `/global/event` show it."""

    id: str = ""
    type: str
    properties: dict[str, Any]


class Attachment(Struct, kw_only=True, forbid_unknown_fields=True):
    """An opencode process, as its plugin describes it.

    `database` is the path of its `opencode.db`; `turns` are the sessions in which a local turn
    runs at this moment; `live`: its views can be moved by events; `share`: the sessions of this
    process are to be shared; `share_key`: the workspace, when it is not to be the project's.
    """

    version: ShortText
    plugin: ShortText
    pid: int
    database: str
    project_id: ShortText
    directory: str
    worktree: str
    mode: Mode = "lease"
    share: bool = True
    share_key: ShortText = ""
    live: bool = True
    turns: list[SessionId] = []


class Attached(Struct, kw_only=True):
    """The sidecar's answer: what the instance's sessions are shared in.

    Without a workspace nothing is shared, for the `reason` given.
    """

    instance: str
    machine: str
    workspace: str = ""
    reason: str = ""


class PushedEvents(Struct, kw_only=True, forbid_unknown_fields=True):
    """Events of an instance in the order they happened there."""

    events: list[OpencodeEvent]


class Apply(Struct, kw_only=True):
    """Command `apply`: replay these events of one session, in order, then report.

    `announce`: also show them to the views; not so when they were shown before.
    """

    batch: int
    session_id: str
    events: list[OpencodeEvent]
    announce: bool = True


class Applied(Struct, kw_only=True, forbid_unknown_fields=True):
    """What became of a batch.

    `held`: a local turn runs in the session, nothing was written; the views were told.
    `failed`: opencode refused it several times, for the `error` given.
    """

    batch: int
    outcome: Literal["applied", "held", "failed"]
    error: ShortText = ""


class Notify(Struct, kw_only=True):
    """Command `notify`: show these events to the views; there is nothing to write."""

    events: list[OpencodeEvent]


class Toast(Struct, kw_only=True):
    """Command `toast`: tell the person at this instance."""

    message: str
    variant: Literal["info", "success", "warning", "error"] = "info"


class WantedTurn(Struct, kw_only=True, forbid_unknown_fields=True):
    """A turn that is to begin in a session. `wait_seconds`: how long to wait for the right."""

    session_id: SessionId
    wait_seconds: float = 20.0


class Holder(Struct, kw_only=True):
    """Who runs a turn, and since when (ms since 1970, Redis's clock)."""

    instance: str
    machine: str
    since_ms: int
    token: int


class Turn(Struct, kw_only=True):
    """The answer: `granted` after everything said before was applied, or who holds the turn.

    Without `granted` and `holder`, nobody can tell now: the plugin goes on as in mode `defer`.
    """

    granted: bool
    token: int = 0
    holder: Holder | None = None
