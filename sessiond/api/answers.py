"""Answers: values as JSON, with the headers that say of which version and how durable they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from sessiond.codec import json

CONFLICTS = "Sessiond-Conflicts"
"""The header of an answer that names the conflicts which a merge left behind."""

DURABILITY = "Sessiond-Durability"
"""The header of an answer to a write: `committed` (in Redis), or `journaled` (on this disk)."""

REPLICAS = "Sessiond-Replicas"
"""The header of an answer to a write in Redis that replicas were to confirm and did not."""

UNCONFIRMED = "unconfirmed"

COMMITTED = {DURABILITY: "committed"}


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
