"""The README's generated tables: `python -m tests.readme` writes them anew."""

from __future__ import annotations

import re
from pathlib import Path

from sessiond.cli import exits
from sessiond.store.keys import TABLE
from sessiond.sync.defaults import DEFAULTS

README = Path(__file__).parent.parent / "README.md"
_SECTION = "<!-- generated: {name} -->\n{content}<!-- /generated -->"


def keys() -> str:
    """Return the table of keys and channels."""
    rows = [
        f"| `{kind.pattern}` | {kind.type} | {kind.lifetime or '-'} | {kind.meaning} |"
        for kind in TABLE.values()
    ]
    return "\n".join(["| key | type | lifetime | what |", "|---|---|---|---|", *rows, ""])


def exit_codes() -> str:
    """Return the table of exit codes."""
    rows = [f"| {code} | {meaning} |" for code, meaning in exits.table()]
    return "\n".join(["| code | meaning |", "|---|---|", *rows, ""])


def merging() -> str:
    """Return the table of the rules by which changes merge."""
    rows = [
        f"| `{rule.document}` `{rule.path}` | `{rule.strategy}` | {rule.why} |" for rule in DEFAULTS
    ]
    return "\n".join(["| field | strategy | why |", "|---|---|---|", *rows, ""])


def with_generated(text: str) -> str:
    """Return the README with its generated sections as they must be."""
    tables = (("keys", keys()), ("merging", merging()), ("exits", exit_codes()))
    for name, content in tables:
        section = _SECTION.format(name=name, content=content)
        begin, end = text.index(f"<!-- generated: {name} -->"), text.index("<!-- /generated -->")
        while end < begin:
            end = text.index("<!-- /generated -->", end + 1)
        text = text[:begin] + section + text[end + len("<!-- /generated -->") :]
    return text


def blocks(text: str, language: str) -> list[str]:
    """Return the code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


if __name__ == "__main__":
    README.write_text(with_generated(README.read_text(encoding="utf-8")), encoding="utf-8")
