"""A daemon that writes without comparing versions: it shows that the tests would find that."""

from __future__ import annotations

import sys

from msgspec import structs

from sessiond.cli.main import main
from sessiond.store import committer
from sessiond.store.draft import Draft, options_of


def _without_expected(draft: Draft) -> list[str | bytes]:
    return options_of(structs.replace(draft, expected=""))


vars(committer)["options_of"] = _without_expected

if __name__ == "__main__":
    sys.exit(main())
