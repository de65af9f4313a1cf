"""Where archived sessions go: what `retention.archive` says."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit


def folder_of(url: str) -> Path | None:
    """Return the folder that a URL names; None for an empty one.

    Raises:
        ValueError: it is not `file://` and an absolute path.
    """
    if not url:
        return None
    parts = urlsplit(url)
    path = unquote(parts.path)
    is_elsewhere = parts.netloc not in ("", "localhost") or parts.query or parts.fragment
    if parts.scheme != "file" or is_elsewhere or not path.startswith("/"):
        raise ValueError(f"{url[:120]!r} names no folder")
    return Path(path)
