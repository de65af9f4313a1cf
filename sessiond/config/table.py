"""The table of options, derived from the Structs: names, types, defaults and meanings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from msgspec import inspect

from sessiond.config.options import Configuration, Section
from sessiond.config.refusals import nearest, refusal, shown_address, shown_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sessiond.errors import ConfigurationError


class OptionRow(NamedTuple):
    """One option, for a reader.

    Attributes:
        key: dotted name, e.g. `redis.timeout_seconds`.
        type: type and limits in words.
        default: the default value.
        doc: meaning and unit.
    """

    key: str
    type: str
    default: object
    doc: str


@dataclass(frozen=True)
class Option:
    """One option, for the code that checks values.

    Attributes:
        key: dotted name.
        annotation: the annotated type, as msgspec takes it.
        kind: the same type, as msgspec describes it.
        default: the default value.
        doc: meaning and unit.
        secret: whether its value must never be shown.
    """

    key: str
    annotation: Any
    kind: inspect.Type
    default: object
    doc: str
    secret: bool

    @property
    def variable(self) -> str:
        """Name of the environment variable that sets it."""
        return "SESSIOND_" + self.key.upper().replace(".", "_")


def described(kind: inspect.Type) -> str:  # noqa: PLR0911  # one per type
    """Put a type and its limits into words."""
    match kind:
        case inspect.Metadata():
            return described(kind.type)
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType():
            return "a whole number" + _limits(kind)
        case inspect.FloatType():
            return "a number" + _limits(kind)
        case inspect.LiteralType():
            return _one_of([str(value) for value in kind.values])
        case inspect.ListType():
            return f"a list, each entry {described(kind.item_type)}"
        case inspect.DictType():
            return f"a section, each entry {described(kind.value_type)}"
        case inspect.StrType():
            return "a text" + _shape(kind)
        case _:
            raise TypeError(f"no option may be of type {kind}")


def _limits(kind: inspect.IntType | inspect.FloatType) -> str:
    if kind.ge is None:
        return ""
    least = _number(kind.ge)
    return f", at least {least}" if kind.le is None else f" from {least} to {_number(kind.le)}"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def _one_of(values: list[str]) -> str:
    return f"one of {', '.join(values)}" if len(values) > 1 else values[0]


def _shape(kind: inspect.StrType) -> str:
    if kind.pattern is not None:
        return " that matches " + kind.pattern.removeprefix("^").removesuffix(r"\Z")
    return " that is not empty" if kind.min_length else ""


def _options(section: type[Section], prefix: str = "") -> Iterator[Option]:
    for name, field, nested in _fields(section):
        if nested is not None:
            yield from _options(nested, f"{prefix}{name}.")
            continue
        kind = inspect.type_info(field.type)
        metadata = kind if isinstance(kind, inspect.Metadata) else inspect.Metadata(kind)
        yield Option(
            key=prefix + name,
            annotation=field.type,
            kind=kind,
            default=_default(field),
            doc=(metadata.extra_json_schema or {}).get("description", ""),
            secret=bool((metadata.extra or {}).get("secret", False)),
        )


def _sections(section: type[Section], prefix: str = "") -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each section's dotted name (the root's is empty) with the names in it."""
    fields = _fields(section)
    yield prefix, tuple(name for name, _, _ in fields)
    for name, _, nested in fields:
        if nested is not None:
            yield from _sections(nested, f"{prefix}.{name}".removeprefix("."))


def _fields(
    section: type[Section],
) -> list[tuple[str, msgspec.structs.FieldInfo, type[Section] | None]]:
    return [
        (field.name, field, field.type if _is_section(field.type) else None)
        for field in msgspec.structs.fields(section)
    ]


def _is_section(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _default(field: msgspec.structs.FieldInfo) -> object:
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return field.default


OPTIONS: dict[str, Option] = {option.key: option for option in _options(Configuration)}
SECTIONS: dict[str, tuple[str, ...]] = dict(_sections(Configuration))


def option_table() -> list[OptionRow]:
    """List every option in the order of declaration."""
    return [
        OptionRow(option.key, described(option.kind), option.default, option.doc)
        for option in OPTIONS.values()
    ]


def option_named(key: str, *, where: str = "") -> Option:
    """Find an option by its dotted name.

    Raises:
        ConfigurationError: there is none; the hint names the nearest one.
    """
    if key in OPTIONS:
        return OPTIONS[key]
    raise unknown_option(key, where=where)


def unknown_option(key: str, *, where: str) -> ConfigurationError:
    """Refuse a dotted name that no option has, and suggest the one that was meant."""
    section, _, name = key.rpartition(".")
    if key in SECTIONS:
        expected, found = "an option", "the name of a section"
        hint = f"name one of its options: {', '.join(f'{key}.{each}' for each in SECTIONS[key])}"
    else:
        names = SECTIONS.get(section, SECTIONS[""])
        expected, found = _one_of(list(names)), f"the unknown name '{shown_name(name)}'"
        hint = _meant(key)
    return refusal(where=where, key=shown_name(key), expected=expected, found=found, hint=hint)


def _meant(key: str) -> str:
    name = key.rpartition(".")[2]
    known = nearest(key, [*OPTIONS, *filter(None, SECTIONS)])
    same_name = [option for option in OPTIONS if option.rpartition(".")[2] == name]
    meant = known or (same_name[0] if same_name else None)
    if meant is None:
        return "the project's config/sessions.yaml lists every option"
    section, _, option = meant.rpartition(".")
    in_section = f" in section {section!r}" if section else ""
    return f"did you mean {option!r}{in_section}?"


def get(configuration: Configuration, key: str) -> object:
    """Read one option by its dotted name. Not for display: see `displayed`.

    Raises:
        ConfigurationError: there is no such option.
    """
    value: object = configuration
    for name in option_named(key).key.split("."):
        value = getattr(value, name)
    return value


def displayed(configuration: Configuration, key: str) -> str:
    """Write one option's value for a person: as it would be typed, but secrets hidden.

    Raises:
        ConfigurationError: there is no such option.
    """
    value = get(configuration, key)
    if OPTIONS[key].secret:
        return shown_address(str(value))
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ",".join(value)
    if isinstance(value, dict):
        return ", ".join(f"{name}: {entry}" for name, entry in value.items())
    return _number(value) if isinstance(value, float) else str(value)
