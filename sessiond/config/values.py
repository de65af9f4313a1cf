"""Judge the value given for one option: its type and limits, then the rules of today."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

import msgspec
from msgspec import inspect

from sessiond.config.archive import folder_of
from sessiond.config.merging import check_strategy, in_the_file_only
from sessiond.config.refusals import HIDDEN, refusal, shown
from sessiond.config.scalars import resolved
from sessiond.config.table import Option, described

if TYPE_CHECKING:
    from sessiond.errors import ConfigurationError

_UNSHOWABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_NOWHERE: Mapping[str, str] = MappingProxyType({})
_SCHEMES = ("redis://", "rediss://", "unix://")


class Given(NamedTuple):
    """A value of the right type, and who gave it (file and line, variable or flag)."""

    value: object
    where: str


def from_text(option: Option, text: str, *, where: str) -> Given:
    """Read an option's value from a variable or from what somebody typed.

    A text is taken as it is; a list is split at commas, and an empty text is an empty list;
    numbers and true/false are written as in the file.

    Raises:
        ConfigurationError: the text is no value of this option, or no text can be one.
    """
    kind = _bare(option.kind)
    if isinstance(kind, inspect.DictType):
        raise in_the_file_only(option.key, where)
    if isinstance(kind, inspect.ListType):
        entries = [entry.strip() for entry in text.split(",")]
        return from_value(option, entries if text.strip() else [], where=where)
    if isinstance(kind, inspect.StrType | inspect.LiteralType):
        return from_value(option, text, where=where)
    try:
        return from_value(option, resolved(text), where=where)
    except OverflowError:
        raise _unfit(option.key, option.kind, "a very large number", where) from None


def from_value(
    option: Option, value: object, *, where: str, entries: Mapping[str, str] = _NOWHERE
) -> Given:
    """Check a value's type and limits; nothing is converted but a whole number to a float.

    Args:
        option: which one.
        value: what was given; nothing is a section without entries.
        where: who gave it (file and line, variable or flag).
        entries: the same for each entry of a section.

    Raises:
        ConfigurationError: the value is of another type or beyond a limit.
    """
    kind = _bare(option.kind)
    if isinstance(kind, inspect.DictType):
        value = {} if value is None else value
        for name, entry in value.items() if isinstance(value, dict) else ():
            place = entries.get(name, where)
            _refuse_unshowable(option.key, name, place)
            check_strategy(option.key, name, entry, where=place)
    if isinstance(kind, inspect.ListType) and isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            _check_entry(f"{option.key}[{index}]", kind.item_type, entry, where)
    converted = _converted(value, option.annotation)
    if converted is None:
        raise _unfit(option.key, option.kind, shown(value, secret=option.secret), where)
    _refuse_unshowable(option.key, converted, where)
    return Given(converted, where)


def check_rules(settings: Mapping[str, Given]) -> None:
    """Refuse what a type cannot tell: an address, a host or a feature that is not served.

    Judges the values that take effect, by dotted name.

    Raises:
        ConfigurationError: a rule is broken.
    """
    for key, rule in _RULES.items():
        if key in settings:
            rule(*settings[key])


def _bare(kind: inspect.Type) -> inspect.Type:
    return kind.type if isinstance(kind, inspect.Metadata) else kind


def _converted(value: object, annotation: object) -> object:
    """Convert strictly; None, which no option can be, when the value does not fit."""
    try:
        converted: object = msgspec.convert(value, type=annotation)
    except (msgspec.ValidationError, UnicodeEncodeError):  # the latter: half a character
        return None
    return converted


def _check_entry(key: str, kind: inspect.Type, entry: object, where: str) -> None:
    if not isinstance(entry, str) or not entry:
        raise _unfit(key, kind, shown(entry), where)
    _refuse_unshowable(key, entry, where)


def _unfit(key: str, kind: inspect.Type, found: str, where: str) -> ConfigurationError:
    expected = described(kind)
    return refusal(
        where=where, key=key, expected=expected, found=found, hint=f"give {key} {expected}"
    )


def _refuse_unshowable(key: str, value: object, where: str) -> None:
    if isinstance(value, str) and _UNSHOWABLE.search(value):
        raise refusal(
            where=where,
            key=key,
            expected="a text of one line that can be shown",
            found="a control character or half a character",
            hint="remove the character",
        )


def _check_redis_url(value: object, where: str) -> None:
    url = str(value)
    if not url:
        return
    hint = "give an address such as redis://127.0.0.1:6379/0, or '' for the embedded server"
    if re.match(r"redis[a-z]*[-+](sentinel|cluster)", url):
        hint = (
            "Sentinel and Cluster are not served; give the address of one server, or of a proxy or "
            "DNS name that leads to the primary"
        )
    if not url.startswith(_SCHEMES):
        found = f"{HIDDEN} with another scheme or none"
        raise refusal(
            where=where,
            key="redis.url",
            expected=f"'' or an address that begins with {', '.join(_SCHEMES)}",
            found=found,
            hint=hint,
        )
    if not _is_complete(url):
        raise refusal(
            where=where,
            key="redis.url",
            expected="a host and perhaps a port, or for unix:// an absolute path",
            found=HIDDEN,
            hint=f"{hint}; write @ : / ? # in a password as %40 %3A %2F %3F %23",
        )


def _is_complete(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # a port that is none, a bracket without its partner
        return False
    if parts.scheme == "unix":
        return parts.hostname is None and len(parts.path) > 1
    return parts.hostname is not None and port != 0


def _check_host(value: object, where: str) -> None:
    host = str(value)
    if host and not _is_loopback(host):
        raise refusal(
            where=where,
            key="api.host",
            expected="'' or a loopback address",
            found=shown(host),
            hint="TLS is not available; use 127.0.0.1 or ::1, or a Unix socket forwarded by ssh",
        )


def _is_loopback(host: str) -> bool:
    # A name is none, not even localhost: what it means is decided elsewhere and may change.
    try:
        address = ip_address(host)
    except ValueError:
        return False
    if isinstance(address, IPv4Address):
        return address.is_loopback
    return address == IPv6Address("::1")


def _check_encryption(value: object, where: str) -> None:
    if value is True:
        raise refusal(
            where=where,
            key="security.encrypt_sessions",
            expected="false",
            found=(
                "true; encryption is not available in this version; "
                "nothing was started so that no session is stored in plain text"
            ),
            hint="set security.encrypt_sessions to false to store sessions in plain text",
        )


def _check_archive(value: object, where: str) -> None:
    try:
        folder_of(str(value))
    except ValueError:
        raise refusal(
            where=where,
            key="retention.archive",
            expected="'' or file:// and an absolute path",
            found=shown(value),
            hint="write file:///path/to/a/folder; other stores are not available",
        ) from None


_RULES: dict[str, Callable[[object, str], None]] = {
    "redis.url": _check_redis_url,
    "api.host": _check_host,
    "retention.archive": _check_archive,
    "security.encrypt_sessions": _check_encryption,
}
