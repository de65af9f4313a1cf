"""Put a configuration together: defaults < file < environment < flags.

Nothing here reads the process's own environment or arguments; the caller hands them in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from sessiond.config.files import FILE_VARIABLE, read_file
from sessiond.config.options import Configuration
from sessiond.config.refusals import nearest, refusal, shown, shown_name
from sessiond.config.table import OPTIONS, SECTIONS, option_named, unknown_option
from sessiond.config.values import Given, check_rules, from_text, from_value
from sessiond.config.yaml_guard import Document, KeyPath, Plain, read_yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from sessiond.errors import ConfigurationError

_PREFIX = "SESSIOND_"
_TEST_PREFIX = "SESSIOND_TEST_"
_PLUGIN_VARIABLES = frozenset(
    f"SESSIOND_{name}"
    for name in (
        *("URL", "SOCKET", "TOKEN", "SHARE", "SHARE_KEY", "TURN_SECONDS", "OPENCODE_MODE"),
        *("OPENCODE_CACHE", "PLUGIN_LIVE", "PLUGIN_LOG"),
    )
)
"""What the plugin in opencode reads (`opencode/plugin/sessiond.js`): people export it for both."""
_VARIABLES = {option.variable: option for option in OPTIONS.values()}


def load(
    *, file: Path | None, environ: Mapping[str, str], flags: Mapping[str, object]
) -> Configuration:
    """Load the configuration; what comes later in the signature wins.

    Every layer is checked for unknown names, types and limits, even where a later one wins;
    rules about the meaning (address, host, encryption) are checked for the values that win.

    Args:
        file: a `sessions.yaml`, read within 64 KiB; None for none. See `find_file`.
        environ: variables such as `SESSIOND_REDIS_URL`; only names with that prefix are read.
        flags: dotted name → value, or a text that is read like a variable's; None: not given.

    Raises:
        ConfigurationError: names the place, the option, what was expected and what was found.
    """
    settings = {
        **({} if file is None else from_document(read_yaml(read_file(file), str(file)))),
        **from_environment(environ),
        **from_flags(flags),
    }
    check_rules(settings)
    return _changed(Configuration(), settings)


def with_value(configuration: Configuration, key: str, text: str) -> Configuration:
    """Copy a configuration with one option changed to what somebody typed.

    Raises:
        ConfigurationError: no such option, or no value of it.
    """
    settings = {key: from_text(option_named(key), text, where="")}
    check_rules(settings)
    return _changed(configuration, settings)


def from_document(document: Document) -> dict[str, Given]:
    """Read the settings of a file: sections of options; an empty section is one without any.

    Raises:
        ConfigurationError: an unknown key, a wrong type, a value beyond its limits.
    """
    return dict(_settings_in(document, (), document.value))


def from_environment(environ: Mapping[str, str]) -> dict[str, Given]:
    """Read the settings of `SESSIOND_<SECTION>_<KEY>` variables.

    `SESSIOND_CONFIG` is `find_file`'s, `SESSIOND_TEST_*` the tests', and a few are those of the
    plugin in opencode; others are refused.

    Raises:
        ConfigurationError: an unknown name, a wrong type, a value beyond its limits.
    """
    settings = {}
    for name, text in environ.items():
        if not name.startswith(_PREFIX) or name.startswith(_TEST_PREFIX):
            continue
        if name == FILE_VARIABLE or name in _PLUGIN_VARIABLES:
            continue
        if name not in _VARIABLES:
            raise _unknown_variable(name)
        option = _VARIABLES[name]
        settings[option.key] = from_text(option, text, where=f"variable {name}")
    return settings


def from_flags(flags: Mapping[str, object]) -> dict[str, Given]:
    """Read the settings of flags by dotted name.

    Raises:
        ConfigurationError: an unknown name, a wrong type, a value beyond its limits.
    """
    settings = {}
    for key, value in flags.items():
        option = option_named(key, where="flag")
        if isinstance(value, str):
            settings[key] = from_text(option, value, where="flag")
        elif value is not None:
            settings[key] = from_value(option, value, where="flag")
    return settings


def _settings_in(document: Document, path: KeyPath, value: Plain) -> Iterator[tuple[str, Given]]:
    key = ".".join(map(str, path))
    where = document.where(path)
    if key in OPTIONS:
        names = value if isinstance(value, dict) else ()
        entries = {name: document.where((*path, name)) for name in names}
        yield key, from_value(OPTIONS[key], value, where=where, entries=entries)
    elif key not in SECTIONS:
        raise unknown_option(key, where=where)
    elif isinstance(value, dict):
        for name, inner in value.items():
            if "." in name:  # `redis.url: …` would else pass for an option
                raise unknown_option(name, where=document.where((*path, name)))
            yield from _settings_in(document, (*path, name), inner)
    elif value is not None:
        raise _no_section(key, value, where)


def _no_section(key: str, value: Plain, where: str) -> ConfigurationError:
    names = ", ".join(SECTIONS[key])
    return refusal(
        where=where,
        key=key,
        expected=f"a section with any of {names}",
        found=shown(value, secret=True),
        hint="write each option on a line of its own, indented: 'name: value'",
    )


def _unknown_variable(name: str) -> ConfigurationError:
    meant = nearest(name, _VARIABLES)
    return refusal(
        where=f"variable {shown_name(name)}",
        key="",
        expected="the name of an option, SESSIOND_<SECTION>_<KEY>",
        found="a name that no option has",
        hint=f"did you mean {meant}? Else unset it" if meant else "unset it",
    )


def _changed(configuration: Configuration, settings: Mapping[str, Given]) -> Configuration:
    values: dict[str, Any] = msgspec.to_builtins(configuration)
    for key, given in settings.items():
        *sections, name = key.split(".")
        section = values
        for each in sections:
            section = section[each]
        section[name] = given.value
    return msgspec.convert(values, type=Configuration)
