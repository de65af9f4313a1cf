"""A daemon that writes without comparing versions: it shows that the tests would find that."""

from __future__ import annotations

import sys

from msgspec import structs

from sessiond.cli.main import main
from sessiond.store import committer
from sessiond.store.committer import Draft

_options = committer._options


def _without_expected(draft: Draft) -> list[str | bytes]:
    return _options(structs.replace(draft, expected=""))


committer._options = _without_expected

if __name__ == "__main__":
    sys.exit(main())
