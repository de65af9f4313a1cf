"""Which entries of a log are put into a block together: old ones, neither too few nor too many."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from msgspec import Struct


class BlockRules(Struct, frozen=True):
    """How a log is compressed.

    Attributes:
        kept: how many of the newest entries stay in the stream.
        entries: in one block, at most; fewer are not worth a block unless they are large.
        size: bytes of JSON in one block, at most; a single entry may be larger.
    """

    kept: int = 1024
    entries: int = 256
    size: int = 1024 * 1024


RULES = BlockRules()


def block_length(sizes: Sequence[int], first: int, end: int, rules: BlockRules = RULES) -> int:
    """Return how many of the oldest entries of a stream become the next block; 0 for none yet.

    Args:
        sizes: bytes of JSON of the oldest entries, one by one, `rules.entries` at most.
        first: the offset of the first of them.
        end: the offset that the log had when it was last known to be settled.
        rules: how much.
    """
    allowed = min(len(sizes), rules.entries, end - rules.kept - first + 1)
    if allowed < 1:
        return 0
    fitting = max(1, sum(total <= rules.size for total in accumulate(sizes[:allowed])))
    is_full = allowed == rules.entries or fitting < allowed
    return fitting if is_full else 0
