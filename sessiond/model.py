"""What a session is: Structs whose JSON is the specification's, and what surrounds them.

Sources: the specification's session files (`metadata.json`, `conversation.json`, `context.json`,
`preferences.json`, `cache.json`). Fields that the specification does not have are optional here
and absent from the JSON until they are set, so its documents pass through unchanged.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

SessionId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$(?!\n)")]
RecordId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$(?!\n)")]
WorkspaceKey = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$(?!\n)")]
ShortText = Annotated[str, Meta(max_length=1024)]
FileName = Annotated[str, Meta(min_length=1, max_length=1024)]
Timestamp = Annotated[datetime, Meta(tz=True)]

Role = Literal["user", "assistant", "system", "tool"]
Status = Literal["active", "archived", "deleted"]
DocumentName = Literal["metadata", "context", "preferences"]
DOCUMENTS: tuple[DocumentName, ...] = ("metadata", "context", "preferences")
ConflictState = Literal["open", "settled", "resolved"]
Take = Literal["ours", "theirs", "base", "merged"]
Durability = Literal["journaled"]
JOURNALED: Durability = "journaled"
"""Said of what is on this machine's disk and not in Redis yet; its place is not known: empty."""

Part = dict[str, Any]
"""A piece of a message (text, tool call, reasoning, file …): `id`, `type` and whatever else the
agent keeps in it, unknown fields included."""


class Message(Struct, kw_only=True):
    """One message, as in the specification's `conversation.json`.

    When `parts` is present, `content` and `tool_calls` are derived from it (see `sync.parts`).
    """

    id: RecordId
    timestamp: Timestamp
    role: Role
    content: str = ""
    tool_calls: list[Any] = []
    metadata: dict[str, Any] = {}
    parts: list[Part] | UnsetType = UNSET


class NewMessage(Struct, kw_only=True, forbid_unknown_fields=True):
    """A message as a writer gives it: `id` and `timestamp` are filled in when left out."""

    role: Role
    content: str | UnsetType = UNSET
    tool_calls: list[Any] | UnsetType = UNSET
    metadata: dict[str, Any] = {}
    parts: list[Part] | UnsetType = UNSET
    id: RecordId | UnsetType = UNSET
    timestamp: Timestamp | UnsetType = UNSET


class Conversation(Struct, kw_only=True):
    """The specification's `conversation.json`."""

    messages: list[Message] = []
    total_messages: int = 0
    context_window_used: int = 0


class Context(Struct, kw_only=True, forbid_unknown_fields=True):
    """The specification's `context.json`. `state` is open: anything an agent keeps fits there.

    `opencode` is opencode's own record of the session, when it is one of its sessions.
    """

    working_directory: str = ""
    active_files: list[str] = []
    recent_commands: list[str] = []
    state: dict[str, Any] = {}
    opencode: dict[str, Any] | UnsetType = UNSET


Preferences = dict[str, Any]
"""The specification's `preferences.json`: open, for example `{"theme": "dark"}`."""


class Metadata(Struct, kw_only=True):
    """The specification's `metadata.json`, and what sharing a session adds to it."""

    session_id: SessionId
    created_at: Timestamp
    last_activity: Timestamp
    user_agent: ShortText = ""
    environment: ShortText = "development"
    status: Status = "active"
    title: ShortText | UnsetType = UNSET
    user_id: ShortText | UnsetType = UNSET
    workspace: WorkspaceKey | UnsetType = UNSET


class CacheEntry(Struct, kw_only=True):
    """One cached value with its own end of life."""

    value: Any
    stored_at: Timestamp
    expires_at: Timestamp


class Cache(Struct, kw_only=True):
    """The specification's `cache.json`; what is in it is of `CachedCall`s, by their keys."""

    entries: dict[str, CacheEntry] = {}


CacheScope = Literal["file", "tree", "revision"]
CacheOutcome = Literal["hit", "stale", "miss", "unknown"]


class CacheCall(Struct, kw_only=True, forbid_unknown_fields=True):
    """A tool call whose answer may be cached.

    Attributes:
        tool: its name, and of which version where that matters: what it answers may change.
        arguments: as the tool got them.
        path: what the answer depends on, relative to the project's folder.
        scope: `file`: on the content of that file alone; `tree`: on all files below that folder;
            `revision`: on the commit that is checked out, as what git tells of that path's history.
    """

    tool: Annotated[str, Meta(min_length=1, max_length=128)]
    arguments: Any = None
    path: FileName
    scope: CacheScope = "file"


class CacheLookup(Struct, kw_only=True, forbid_unknown_fields=True):
    """Calls whose answers are looked for. `root`: the project's folder on this machine."""

    root: FileName
    calls: Annotated[list[CacheCall], Meta(min_length=1, max_length=64)]


class CacheAnswer(Struct, kw_only=True):
    """What became of one call of a lookup.

    Attributes:
        key: of the call.
        outcome: `hit`: `value` is what the tool would answer now; `stale`: what is cached is of
            other files; `miss`: nothing is cached; `unknown`: what it depends on cannot be told.
        reason: why it cannot be told, or cannot be cached.
        stamp: the state of the files before the tool runs, to be given with the `put`; empty where
            they changed a moment ago: then no later state could be told from it.
    """

    key: str
    outcome: CacheOutcome
    value: Any = UNSET
    machine: str | UnsetType = UNSET
    stamp: str = ""
    reason: str = ""


class CacheAnswers(Struct, kw_only=True):
    """The answers to a lookup, in the order of its calls."""

    answers: list[CacheAnswer]


class NewCacheValue(Struct, kw_only=True, forbid_unknown_fields=True):
    """What a tool answered to a call. `stamp`: what the lookup answered before the tool ran."""

    root: FileName
    call: CacheCall
    stamp: Annotated[str, Meta(max_length=256)]
    value: Any


class CacheStored(Struct, kw_only=True):
    """Whether an answer was cached, and if not, why."""

    key: str
    stored: bool
    reason: str = ""


class CacheCounts(Struct, kw_only=True):
    """A session's cache. The outcomes of lookups, and evictions, are counted since it began."""

    entries: int = 0
    bytes: int = 0
    limit_bytes: int = 0
    hits: int = 0
    misses: int = 0
    stale: int = 0
    evicted: int = 0


class CachedCall(Struct, kw_only=True):
    """An answer in the cache: of which call, from which machine, and until when it is kept.

    Attributes:
        bytes: that it takes in Redis.
        arguments, value: of the call, and the answer; only where both take 1 KiB of JSON at most.
    """

    key: str
    tool: str
    path: str
    scope: CacheScope
    machine: str
    bytes: int
    stored_at: Timestamp
    expires_at: Timestamp
    arguments: Any = UNSET
    value: Any = UNSET


class CacheContents(Struct, kw_only=True):
    """What a session's cache holds, the latest used first."""

    counts: CacheCounts
    entries: list[CachedCall]


class ChangedFiles(Struct, kw_only=True, forbid_unknown_fields=True):
    """Files that changed, relative to the project's folder."""

    paths: Annotated[list[FileName], Meta(min_length=1, max_length=256)]


class CacheDropped(Struct, kw_only=True):
    """How many answers were dropped from a session's cache."""

    dropped: int


class Session(Struct, kw_only=True):
    """A whole session at one position of its log; `versions` are those of its documents.

    `stale_seconds`, here and below: what a client was told (`Sessiond-Stale`) when Redis was away:
    so long ago this was last known to be what it has. Absent when it is fresh.
    """

    metadata: Metadata
    conversation: Conversation
    context: Context
    preferences: Preferences
    position: str
    versions: dict[DocumentName, str]
    durability: Durability | UnsetType = UNSET
    stale_seconds: float | UnsetType = UNSET


class SessionSummary(Struct, kw_only=True):
    """A session in a listing."""

    metadata: Metadata
    total_messages: int
    position: str


class SessionPage(Struct, kw_only=True):
    """One page of a listing, most recently active first. `cursor` asks for the next page."""

    sessions: list[SessionSummary]
    cursor: str | None = None
    stale_seconds: float | UnsetType = UNSET


class NewSession(Struct, kw_only=True, forbid_unknown_fields=True):
    """What a creator may say about a session. `created_at`: of one that began elsewhere."""

    session_id: SessionId | UnsetType = UNSET
    created_at: Timestamp | UnsetType = UNSET
    user_id: ShortText | UnsetType = UNSET
    title: ShortText | UnsetType = UNSET
    workspace: WorkspaceKey | UnsetType = UNSET
    user_agent: ShortText = ""
    environment: ShortText = "development"
    context: Context = msgspec.field(default_factory=Context)
    preferences: Preferences = {}


class NewMessages(Struct, kw_only=True, forbid_unknown_fields=True):
    """An atomic group: all of it takes consecutive offsets, or nothing is written."""

    messages: Annotated[list[NewMessage], Meta(min_length=1)]


class WrittenRecord(Struct, kw_only=True):
    """Where a record went. `version` is the position of its last change: `epoch:offset`.

    `conflicts` are the numbers of those that a merge left behind.
    """

    id: str
    version: str
    conflicts: list[str] | UnsetType = UNSET
    durability: Durability | UnsetType = UNSET


class Written(Struct, kw_only=True):
    """The answer to an append: `duplicate` when the same was already written before."""

    records: list[WrittenRecord]
    position: str
    duplicate: bool = False
    durability: Durability | UnsetType = UNSET


class MessagePage(Struct, kw_only=True):
    """One page of a conversation; `next` is the `after` of the following page, if there is one."""

    messages: list[Message]
    position: str
    next: int | None = None
    stale_seconds: float | UnsetType = UNSET


WindowStrategy = Literal["recent", "pinned", "tools", "summary"]
WINDOW_STRATEGIES: tuple[WindowStrategy, ...] = ("recent", "pinned", "tools", "summary")
LeftOutReason = Literal["older", "summarised", "tool-output", "too-large"]


class LeftOut(Struct, kw_only=True):
    """What a window leaves out of a conversation; all of it is in the conversation still.

    Attributes:
        reason: `older`: these messages did not fit; `summarised`: the same, and the summary stands
            for them; `tool-output`: a stub stands for large outputs of tools; `too-large`: the
            message is cut.
        first, last: ids of the first and last message of the run that is left out.
        messages: how many it has; 0 where a message is there and not whole.
        tokens: about how many they take.
        parts: the parts that have a stub.
    """

    reason: LeftOutReason
    first: str
    last: str
    messages: int
    tokens: int
    parts: list[str] | UnsetType = UNSET


class Window(Struct, kw_only=True):
    """What of a conversation fits a window of `budget` tokens, by an estimate.

    Attributes:
        messages: in their order; see `left_out` for those that are not whole.
        tokens: about how many the window takes, the summary included.
        total_messages: of the whole conversation.
        summary: what stands before the messages for those left out, where one was made.
    """

    session_id: str
    strategy: WindowStrategy
    budget: int
    tokens: int
    messages: list[Message]
    left_out: list[LeftOut]
    total_messages: int
    position: str
    summary: str | UnsetType = UNSET
    stale_seconds: float | UnsetType = UNSET


class VersionedMessage(Struct, kw_only=True):
    """One message and the version an edit of it may be based on."""

    message: Message
    version: str
    stale_seconds: float | UnsetType = UNSET


class Document(Struct, kw_only=True):
    """One document of a session and the version a change of it may be based on.

    As the answer to a change, `conflicts` are the numbers of those that a merge left behind.
    """

    name: DocumentName
    value: Any
    version: str
    conflicts: list[str] | UnsetType = UNSET
    durability: Durability | UnsetType = UNSET
    stale_seconds: float | UnsetType = UNSET


class ConflictSide(Struct, kw_only=True):
    """What one side of a conflict had, and who wrote it when.

    Attributes:
        value: absent where this side had removed it.
        origin: `<client>@<daemon>.<life>`, as in the log.
        version: the writing's position in the log; absent for a change that was not in it yet.
    """

    value: Any = UNSET
    origin: str
    at: Timestamp
    version: str | UnsetType = UNSET


class Resolution(Struct, kw_only=True):
    """What somebody decided about a conflict.

    Attributes:
        take: `ours`, `theirs`, `base`, `merged` (what stands is right) or `value`.
        value: the value that was put in its place, where one was.
    """

    take: Take | Literal["value"]
    value: Any = UNSET
    origin: str
    at: Timestamp
    version: str


class ConflictRecord(Struct, kw_only=True):
    """A field that two changed at once, where a part of one is not in the merged value.

    Attributes:
        number: of the conflict among those of its session; an offset in its log.
        document: of what kind it is about.
        id: the message, or `<message>/<part>`; empty for documents.
        path: where in it: names of fields, and ids of objects in lists; empty for the whole.
        strategy: the rule that decided; `removal` and `deletion` are those of removed records and
            deleted sessions, `several` tells of many fields in one conflict about the whole,
            `refusal` of a write that was acknowledged as journaled and could not be done.
        reason: why it could not.
        outcome: whose value stands.
        base_version: what both began with; empty when it was not known any more.
        base: the value then; absent where there was none, like in the sides.
        ours: the side that came later to the log, and found the other there.
        merged: what stood afterwards.
        state: `open` until somebody decides (strategy `manual`), `settled` by the rule, `resolved`
            by a person.
    """

    number: str = ""
    session_id: str
    document: Literal["metadata", "context", "preferences", "message", "part"]
    id: str = ""
    path: list[str] = []
    strategy: str
    outcome: Literal["ours", "theirs", "merged"]
    base_version: str = ""
    base: Any = UNSET
    ours: ConflictSide
    theirs: ConflictSide
    merged: Any = UNSET
    at: Timestamp
    reason: str | UnsetType = UNSET
    state: ConflictState = "settled"
    resolution: Resolution | UnsetType = UNSET


class ConflictPage(Struct, kw_only=True):
    """Conflicts, the newest up to a limit; oldest first within a session."""

    conflicts: list[ConflictRecord]


class Choice(Struct, kw_only=True, forbid_unknown_fields=True):
    """What is to become of a conflict: whose side to take, or a value to put in its place."""

    take: Take | UnsetType = UNSET
    value: Any = UNSET


class Operation(Struct, kw_only=True):
    """One change of a session, as the log keeps it and events announce it."""

    op: str
    session_id: str
    position: str
    at: Timestamp
    origin: str
    id: str
    body: Any


class OperationPage(Struct, kw_only=True):
    """A stretch of the log, of 8 MiB at most, or of one operation.

    `more` says that the log goes on; `reset` names why the asked position is no longer part of it.
    """

    operations: list[Operation]
    position: str
    more: bool
    reset: str | None = None


class Live(Struct, kw_only=True):
    """Something passing, such as text being typed: announced to who listens now, never stored."""

    session_id: str
    origin: str
    body: Any


class JournaledOperation(Struct, kw_only=True):
    """A write that is journaled on this machine and waits for Redis, as it was asked for.

    Told to those who watch the session at the same daemon, as an event without an id; that of the
    operation follows when it has its place.

    Attributes:
        op: of the operation that it is to become.
        version: what stands for its version.
        id: as in `Operation`.
        body: the message or part; of edits and changes of documents, the merge patch.
        replace: whether `body` is to replace the document.
    """

    op: str
    session_id: str
    version: str
    at: Timestamp
    origin: str
    id: str
    body: Any
    replace: bool = False


class NewPresence(Struct, kw_only=True, forbid_unknown_fields=True):
    """What an instance says of itself when it announces that it is at a session.

    `active_files`: what it works on, as others would name it: relative to the project's folder.
    """

    active_files: Annotated[list[FileName], Meta(max_length=256)] = []


class Presence(Struct, kw_only=True):
    """An instance at a session: since when, when it last said so, and until when that counts.

    Times are milliseconds since 1970 by Redis's clock. `machine`: the daemon it is at; `client`:
    the program, if it says; `has_turn`: it holds the lease of the session's turn.
    """

    instance: str
    machine: str
    client: str
    active_files: list[str]
    since_ms: int
    seen_ms: int
    until_ms: int
    has_turn: bool


class SessionPresence(Struct, kw_only=True):
    """Who is at a session, the longest there first.

    `shared_files`: each file that two or more of them have open, and their instances;
    `valid_seconds`: how long an announcement counts at this daemon that is not repeated.
    """

    session_id: str
    present: list[Presence]
    shared_files: dict[str, list[str]]
    valid_seconds: float


class PresentSessions(Struct, kw_only=True):
    """The sessions where somebody is."""

    sessions: list[SessionPresence]


class PresenceChange(Struct, kw_only=True):
    """What a live event says below `presence`: somebody came, left, or works on other files.

    `lost`: it was not heard of in time. `who`: the instance as it is now, or was at last.
    """

    change: Literal["came", "changed", "left", "lost"]
    who: Presence


class Reset(Struct, kw_only=True):
    """A reader's position is not part of the log any more: what it holds is to be dropped.

    The log follows from its beginning. `reason`: `history-changed`, `trimmed` or `missing`.
    """

    session_id: str
    reason: str


class PositionReply(Struct, kw_only=True):
    """Where a session's log ends now."""

    session_id: str
    position: str
    durability: Durability | UnsetType = UNSET


class ArchivedSession(Struct, kw_only=True):
    """Whether a session is archived, and where its log ends.

    Attributes:
        bytes: how large its archive is, if it was made just now.
    """

    session_id: str
    position: str
    archived: bool
    bytes: int | UnsetType = UNSET


class Problem(Struct, kw_only=True):
    """An error as a problem document (RFC 9457). `code` is stable and ends `type`."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    hint: str | UnsetType = UNSET
    retryable: bool = False
