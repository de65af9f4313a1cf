"""The option `sync.merge`: which strategy merges which field; checked, and made into rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from sessiond.config.functions import imported
from sessiond.config.refusals import nearest, refusal, shown, shown_name
from sessiond.errors import InvalidInput
from sessiond.sync.rules import STRATEGY_NAMES, Rules, is_strategy, known_fields, possible
from sessiond.sync.strategies import is_custom

if TYPE_CHECKING:
    from sessiond.config.options import MergeOptions
    from sessiond.errors import ConfigurationError

_SECTION = "sync.merge"


def check_strategy(section: str, pattern: object, strategy: object, *, where: str) -> None:
    """Check one entry: a pattern that a field of the document can fit, and a strategy's name.

    A custom strategy (`package.module:function`) is not imported here: see `merge_rules`.

    Raises:
        ConfigurationError: it is something else.
    """
    key = f"{section}[{shown_name(str(pattern))}]"
    document = section.rpartition(".")[2]
    try:
        possible(document, str(pattern))  # type: ignore[arg-type]  # sections are named so
    except InvalidInput as error:
        raise refusal(
            where=where,
            key=key,
            expected=f"a field of {document}, or a pattern for some",
            found=error.detail,
            hint=_fields(document, str(pattern)),
        ) from None
    if not isinstance(strategy, str) or not is_strategy(strategy):
        raise refusal(
            where=where,
            key=key,
            expected=f"one of {', '.join(STRATEGY_NAMES)}",
            found=shown(strategy),
            hint=_meant(strategy),
        )


def in_the_file_only(key: str, where: str) -> ConfigurationError:
    """Refuse a variable, a flag or a typed text for a whole section of entries."""
    return refusal(
        where=where,
        key=key,
        expected="nothing: this option is a section of the file",
        found="a text",
        hint=f"write {key} in sessions.yaml, one 'field: strategy' on a line",
    )


def merge_rules(options: MergeOptions) -> Rules:
    """Return the rules for merging, custom strategies imported. To be called once, at the start.

    Raises:
        ConfigurationError: a custom strategy cannot be imported, or is no function.
    """
    chosen: dict[str, dict[str, str]] = msgspec.structs.asdict(options)
    functions = {
        strategy: imported(
            strategy,
            f"{_SECTION}.{document}[{shown_name(pattern)}]",
            "base, ours, theirs",
            "name another strategy",
        )
        for document, rules in chosen.items()
        for pattern, strategy in rules.items()
        if is_custom(strategy)
    }
    return Rules(chosen, functions)


def _fields(document: str, pattern: str) -> str:
    known = known_fields(document)  # type: ignore[arg-type]  # sections are named so
    if not known:
        return "part names with '.'; '*' stands for any name, '**' for any number of them"
    meant = nearest(pattern.partition(".")[0], known)
    return f"did you mean {meant}?" if meant else f"{document} has {', '.join(known)}"


def _meant(strategy: object) -> str:
    meant = nearest(strategy, STRATEGY_NAMES) if isinstance(strategy, str) else None
    return f"did you mean {meant}?" if meant else "the README tells what each of them does"
