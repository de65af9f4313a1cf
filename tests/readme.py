"""The README's generated tables: `python -m tests.readme` writes them anew."""

from __future__ import annotations

import re
from pathlib import Path

from sessiond.cli import exits
from sessiond.store.keys import TABLE

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


def with_generated(text: str) -> str:
    """Return the README with its generated sections as they must be."""
    for name, content in (("keys", keys()), ("exits", exit_codes())):
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
