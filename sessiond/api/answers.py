"""Answers: values as JSON, with the headers that say of which version and how durable they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from sessiond.codec import json
from sessiond.service.offline.reading import Found

CONFLICTS = "Sessiond-Conflicts"
"""The header of an answer that names the conflicts which a merge left behind."""

DURABILITY = "Sessiond-Durability"
"""The header of an answer to a write: `committed` (in Redis), or `journaled` (on this disk)."""

REPLICAS = "Sessiond-Replicas"
"""The header of an answer to a write in Redis that replicas were to confirm and did not."""

UNCONFIRMED = "unconfirmed"

STALE = "Sessiond-Stale"
"""The header of what this machine knew when Redis went away: how many seconds ago that was."""

WAITING = "Sessiond-Waiting"
"""The header of the same: how many writes it shows that wait for Redis."""

COMMITTED = {DURABILITY: "committed"}


def found_headers(found: Found[Any]) -> dict[str, str]:
    """Return the headers that tell how far what was read can be trusted."""
    if found.stale_seconds is None:
        return {}
    headers = {STALE: f"{found.stale_seconds:.1f}"}
    return {**headers, WAITING: str(found.waiting)} if found.waiting else headers


def answer(
    body: Any, *, status: int = 200, version: str = "", headers: Mapping[str, str] | None = None
) -> web.Response:
    """Return a JSON answer; `body` is a Struct, or JSON already. `version` becomes the ETag."""
    data = body if isinstance(body, bytes) else json.encode(body)
    response = web.Response(body=data, status=status, content_type="application/json")
    if version:
        response.headers["ETag"] = f'"{version}"'
    if headers:
        response.headers.update(headers)
    return response
