"""Read one small YAML document from a source that is not trusted to be one.

YAML can crash a parser (100,000 brackets in libyaml), fill the memory (aliases of aliases) or
say something else than it seems to (`NO` is false and `22:22` is 1342 in YAML 1.1). So the
events of PyYAML's pure-Python parser are judged one by one, before anything is built from
them, and scalars are resolved by YAML 1.2 (`scalars.py`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, NoReturn, TypeAlias

import yaml

from sessiond.config.refusals import HIDDEN, place_in, printable, refusal, shown, shown_name
from sessiond.config.scalars import resolved

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sessiond.errors import ConfigurationError

LIMIT_BYTES = 65_536
LIMIT_DEPTH = 32
LIMIT_NODES = 2_000  # keeps the worst 64 KiB well under a second: each takes some 50 µs
_SHOWN_LEVELS = 6

Plain: TypeAlias = "bool | int | float | str | list[Plain] | dict[str, Plain] | None"
KeyPath: TypeAlias = tuple[str | int, ...]

_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")


class Place(NamedTuple):
    """A place in a document; both count from 1."""

    line: int
    column: int


@dataclass(frozen=True)
class Document:
    """A plain value and where its parts were written.

    Attributes:
        source: name of the file.
        value: the document as dict, list and scalars; None when it is empty.
        places: place of every key and list entry. Values stay out of the repr: see refusals.
    """

    source: str
    value: Plain = field(repr=False)
    places: Mapping[KeyPath, Place] = field(repr=False)

    def line(self, path: KeyPath) -> Place:
        """Tell the (line, column) of a key, or of what it would be in when it is absent."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, Place(1, 1))

    def where(self, path: KeyPath) -> str:
        """Name file, line and column of a key, for a message."""
        return place_in(self.source, *self.line(path))


def read_yaml(text: bytes | str, source: str) -> Document:
    """Read one YAML document of sections, lists and scalars.

    Limits: 64 KiB, UTF-8, one document, 2,000 values, 32 levels; no anchor, alias, merge key
    or tag; every key is text and occurs once in its section. Quoted scalars are text; plain
    ones follow YAML 1.2: only true/false, null/~/nothing and numbers are not text.

    Args:
        text: the whole file.
        source: the name of the file, for messages.

    Raises:
        ConfigurationError: the text breaks a rule or is not YAML; nothing else is raised.
    """
    builder = _Builder(source)
    decoded = _decoded(text, source)
    try:
        for event in yaml.parse(decoded, Loader=yaml.SafeLoader):
            builder.take(event)
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # Never chained: a YAMLError quotes the line, and the line may hold a password.
        raise _syntax_refusal(builder, decoded, error) from None
    return Document(source, builder.value, builder.places)


def _decoded(text: bytes | str, source: str) -> str:
    length = len(text)
    if length <= LIMIT_BYTES and isinstance(text, str):
        length = len(text.encode("utf-8", "surrogatepass"))
    if length > LIMIT_BYTES:
        raise refusal(
            where=printable(source),
            key="",
            expected=f"at most {LIMIT_BYTES} bytes",
            found="more",
            hint="keep only sessiond's own options in this file",
        )
    try:
        return text.decode() if isinstance(text, bytes) else text.encode().decode()
    except UnicodeError as error:
        start = error.start if isinstance(error, UnicodeDecodeError | UnicodeEncodeError) else 0
        newline = b"\n" if isinstance(text, bytes) else "\n"
        line = text.count(newline, 0, start) + 1  # type: ignore[arg-type]  # same kind as text
        raise refusal(
            where=f"{printable(source)}, line {line}",
            key="",
            expected="UTF-8",
            found="something else",
            hint="save the file as UTF-8",
        ) from None


@dataclass
class _Open:
    """A section or list whose end has not been seen yet."""

    value: dict[str, Plain] | list[Plain]
    path: KeyPath
    key: str | None = None  # in a section: the key whose value comes next


class _Builder:
    """Judges events in turn and builds the value from those that may pass."""

    def __init__(self, source: str) -> None:
        self.value: Plain = None
        self.places: dict[KeyPath, Place] = {}
        self.last = Place(1, 1)
        self.source = source
        self._open: list[_Open] = []
        self._documents = 0
        self._nodes = 0

    def take(self, event: yaml.Event) -> None:
        """Judge the next event.

        Raises:
            ConfigurationError: it breaks a rule.
        """
        self.last = _place(event)
        if isinstance(event, yaml.DocumentStartEvent):
            self._take_document(event)
        elif isinstance(event, yaml.NodeEvent):
            self._take_node(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._open.pop()

    def here(self) -> KeyPath:
        """Tell the path of the value that comes next, or of the section whose key does."""
        if not self._open:
            return ()
        innermost = self._open[-1]
        if isinstance(innermost.value, list):
            return (*innermost.path, len(innermost.value))
        return innermost.path if innermost.key is None else (*innermost.path, innermost.key)

    def _take_document(self, event: yaml.DocumentStartEvent) -> None:
        self._documents += 1
        if self._documents > 1:
            self._refuse(
                event, "one document", "a second one", "remove the '---' line and what follows"
            )

    def _take_node(self, event: yaml.NodeEvent) -> None:
        self._refuse_references(event)
        self._nodes += 1
        if self._nodes > LIMIT_NODES:
            hint = "keep only sessiond's own options in this file"
            self._refuse(event, f"at most {LIMIT_NODES} keys and values", "more", hint)
        innermost = self._open[-1] if self._open else None
        if innermost is not None and isinstance(innermost.value, dict) and innermost.key is None:
            self._take_key(event, innermost, innermost.value)
        else:
            self._take_value(event)

    def _refuse_references(self, event: yaml.NodeEvent) -> None:
        # Their names are not shown: a password that begins with & * or ! would be one.
        whole = "write the value out in full"
        quoted = "or put a text that begins with this character in quotes"
        if isinstance(event, yaml.AliasEvent):
            self._refuse(event, "a value", "an alias (*)", f"{whole}, {quoted}")
        if event.anchor is not None:
            self._refuse(event, "a value", "an anchor (&)", f"{whole} where it is used, {quoted}")
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag:
            self._refuse(event, "a value", "a tag (!)", f"remove the tag, {quoted}")

    def _take_key(self, event: yaml.NodeEvent, section: _Open, value: dict[str, Plain]) -> None:
        if not isinstance(event, yaml.ScalarEvent):
            found = shown({} if isinstance(event, yaml.MappingStartEvent) else [])
            self._refuse(event, "a key that is text", found, "write a name before the ':'")
        if _is_plain(event) and event.value == "<<":
            self._refuse(event, "a key", "a merge key (<<)", "write the keys out in full")
        key = self._scalar(event)
        if not isinstance(key, str):
            hint = "put the key in quotes if it is meant as text"
            self._refuse(event, "a key that is text", shown(key), hint)
        path = (*section.path, key)
        if key in value:
            first = self.places[path].line
            found = f"a second '{shown_name(key)}' (the first is in line {first})"
            self._refuse(event, "each key once", found, "keep one of the two", path)
        section.key = key
        self.places[path] = _place(event)

    def _take_value(self, event: yaml.NodeEvent) -> None:
        path = self.here()
        self.places.setdefault(path, _place(event))
        if isinstance(event, yaml.ScalarEvent):
            self._attach(self._scalar(event))
            return
        if len(self._open) >= LIMIT_DEPTH:
            hint = "remove levels; no option is more than three deep"
            self._refuse(event, f"at most {LIMIT_DEPTH} levels", "more", hint)
        value: dict[str, Plain] | list[Plain]
        value = {} if isinstance(event, yaml.MappingStartEvent) else []
        self._attach(value)
        self._open.append(_Open(value, path))

    def _attach(self, value: Plain) -> None:
        if not self._open:
            self.value = value
            return
        innermost = self._open[-1]
        if isinstance(innermost.value, list):
            innermost.value.append(value)
        elif innermost.key is not None:
            innermost.value[innermost.key] = value
            innermost.key = None

    def _scalar(self, event: yaml.ScalarEvent) -> Plain:
        text: str = event.value
        if any("\ud800" <= character <= "\udfff" for character in text):
            self._refuse(event, "text", "half a character (a surrogate)", r"remove the \u escape")
        if not _is_plain(event):
            return text
        try:
            return resolved(text)
        except OverflowError:
            self._refuse(event, "a number of ordinary size", "a larger one", "use a smaller one")

    def _refuse(
        self, event: yaml.Event, expected: str, found: str, hint: str, path: KeyPath | None = None
    ) -> NoReturn:
        raise refusal(
            where=place_in(self.source, *_place(event)),
            key=dotted(self.here() if path is None else path),
            expected=expected,
            found=found,
            hint=hint,
        )


def dotted(path: KeyPath) -> str:
    """Write a path the way options are named: `api.allowed_hosts[0]`."""
    text = ""
    for part in path[:_SHOWN_LEVELS]:
        text += f"[{part}]" if isinstance(part, int) else f".{shown_name(part)}"
    return text.removeprefix(".") + ("…" if len(path) > _SHOWN_LEVELS else "")


def _is_plain(event: yaml.ScalarEvent) -> bool:
    return not event.style


def _place(event: yaml.Event) -> Place:
    mark = event.start_mark
    return Place(mark.line + 1, mark.column + 1) if mark else Place(1, 1)


def _syntax_refusal(builder: _Builder, text: str, error: Exception) -> ConfigurationError:
    return refusal(
        where=place_in(builder.source, *_error_place(text, error, builder.last)),
        key=dotted(builder.here()),
        expected="YAML",
        found=_problem(error),
        hint="correct this line: indent with spaces, and quote texts with special characters",
    )


def _error_place(text: str, error: Exception, after: Place) -> Place:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        if mark is not None:
            return Place(mark.line + 1, mark.column + 1)
    if isinstance(error, yaml.reader.ReaderError):
        before = text[: error.position]
        return Place(before.count("\n") + 1, len(before) - before.rfind("\n"))
    return after


def _problem(error: Exception) -> str:
    """Say what PyYAML found wrong, without the characters that somebody wrote."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem:
        return f"a mistake: {_QUOTED.sub(_without_words, printable(error.problem))}"
    if isinstance(error, yaml.reader.ReaderError):
        return "a character that YAML does not allow"
    return "an escape or a number that YAML does not allow"


def _without_words(quoted: re.Match[str]) -> str:
    text = quoted[0]
    names_a_token = text.startswith("'<") or text == r"'\t'"
    return text if names_a_token or not re.search(r"\w", text) else HIDDEN
