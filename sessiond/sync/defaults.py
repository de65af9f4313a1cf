"""The rules by which changes merge when nobody chose others; the README's table is made of them."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias, get_args

MergedDocument: TypeAlias = Literal["metadata", "context", "preferences", "message", "part"]
MERGED_DOCUMENTS: tuple[MergedDocument, ...] = get_args(MergedDocument)


class DefaultRule(NamedTuple):
    """A pattern for fields of a document, the name of their strategy, and why it is the one."""

    document: MergedDocument
    path: str
    strategy: str
    why: str


_COUNTER = "a name that says something is counted: what both counted is added up"

DEFAULTS = (
    DefaultRule(
        "metadata",
        "status",
        "lattice",
        "deleted beats archived beats active: nobody's deletion is undone by chance",
    ),
    DefaultRule("metadata", "last_activity", "max", "the latest activity of either"),
    DefaultRule("metadata", "created_at", "min", "it began when the first one began it"),
    DefaultRule("metadata", "title", "last-writer-wins", "one line, that is chosen as a whole"),
    DefaultRule("metadata", "**", "last-writer-wins", "single values; the losing one is recorded"),
    DefaultRule(
        "context", "active_files", "union", "both sides' files; what either closed is closed"
    ),
    DefaultRule(
        "context", "recent_commands", "append(100)", "a history: both sides' commands, the newest"
    ),
    DefaultRule("context", "state.findings", "union", "nobody's finding is lost"),
    DefaultRule("context", "state.**.count", "counter", _COUNTER),
    DefaultRule("context", "state.**.*_count", "counter", _COUNTER),
    DefaultRule(
        "context",
        "state.**.total_*",
        "counter",
        "running sums, such as total_tokens; a bare `total` is mostly a size, and not added up",
    ),
    DefaultRule("context", "opencode.time.updated", "max", "the latest change of either"),
    DefaultRule("context", "state", "last-writer-wins", "field by field, however deep"),
    DefaultRule("context", "**", "last-writer-wins", "single values; the losing one is recorded"),
    DefaultRule(
        "preferences", "**", "last-writer-wins", "field by field: the latest choice is the one"
    ),
    DefaultRule(
        "message", "content", "text", "line by line; a conflict where both touched the same"
    ),
    DefaultRule("message", "parts.*.text", "text", "the same, part by part"),
    DefaultRule("message", "**", "last-writer-wins", "field by field; lists with ids by their ids"),
    DefaultRule("part", "text", "text", "line by line; a conflict where both touched the same"),
    DefaultRule("part", "**", "last-writer-wins", "field by field; lists with ids by their ids"),
)
