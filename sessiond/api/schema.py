"""The OpenAPI 3.1 document, generated from the routes and the Structs they name."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from sessiond import __version__
from sessiond.api.answers import STALE, WAITING
from sessiond.api.problems import CONTENT_TYPE
from sessiond.api.routes import EVENT_STREAM, Route
from sessiond.codec.json import encode
from sessiond.model import Problem

_REF = "#/components/schemas/{name}"
_PARAMETER = re.compile(r"\{(\w+)\}")
_NUMBERS = frozenset({"limit", "tokens"})
_AGE = {
    STALE: {
        "description": "Redis is away: so many seconds ago this was last known to be what it has",
        "schema": {"type": "number"},
    },
    WAITING: {
        "description": "How many writes this shows that are journaled here and wait for Redis",
        "schema": {"type": "integer"},
    },
}
_PATTERNS = {
    "session_id": r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$",
    "message_id": r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$",
    "part_id": r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$",
    "user_id": r"^[A-Za-z0-9][A-Za-z0-9_.@+-]{0,127}$",
    "workspace": r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$",
    "number": r"^\d{1,15}(-\d{1,15})?$",
    "document": r"^(metadata|context|preferences)$",
    "key": r"^[0-9a-f]{16}\.[0-9a-f]{32}$",
    "instance": r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$",
}


def openapi(routes: list[Route]) -> bytes:
    """Return the document that describes these routes, as JSON."""
    types: list[Any] = [Problem]
    types += [kind for route in routes for kind in (route.answer, *_bodies(route)) if kind]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    by_type = dict(zip(map(repr, types), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, by_type)
    return encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "sessiond",
                "version": __version__,
                "description": "Sessions of coding agents, in step on every machine.",
            },
            "paths": paths,
            "components": {
                "schemas": components,
                "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            },
            "security": [{}, {"token": []}],
        }
    )


def _operation(route: Route, schemas: dict[str, dict[str, Any]]) -> dict[str, Any]:
    done: dict[str, Any] = {"description": route.summary}
    if route.answer:
        done["content"] = {route.media_type: {"schema": schemas[repr(route.answer)]}}
    if route.media_type == EVENT_STREAM:
        done["description"] += ". Each event's data is an operation; see the README for the others."
    if route.offline:
        done["headers"] = _AGE
    problem = {"schema": schemas[repr(Problem)]}
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": getattr(route.handler, "__name__", "route") + "_" + route.method.lower(),
        "parameters": _parameters(route),
        "responses": {
            str(route.status): done,
            "default": {"description": "A problem (RFC 9457)", "content": {CONTENT_TYPE: problem}},
        },
    }
    if route.status == 201:  # noqa: PLR2004 - the same again is found, not created
        operation["responses"]["200"] = {**done, "description": "It was there already"}
    if "Prefer" in route.headers:
        waits = "Redis does not have it yet: it is on this machine's disk, and will be done"
        operation["responses"]["202"] = {**done, "description": waits}
    if route.unready:
        content = {"application/json": {"schema": schemas[repr(route.unready)]}}
        operation["responses"]["503"] = {"description": "Not yet, or not now", "content": content}
    if route.body:
        choices = [schemas[repr(kind)] for kind in _bodies(route)]
        schema = choices[0] if len(choices) == 1 else {"anyOf": choices}
        content = {"application/json": {"schema": schema}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _bodies(route: Route) -> tuple[Any, ...]:
    return route.body if isinstance(route.body, tuple) else (route.body,)


def _parameters(route: Route) -> list[dict[str, Any]]:
    text = {"type": "string"}
    in_path = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {**text, "pattern": _PATTERNS[name]},
        }
        for name in _PARAMETER.findall(route.path)
    ]
    in_query = [
        {"name": name, "in": "query", "schema": {"type": "integer"} if name in _NUMBERS else text}
        for name in route.query
    ]
    in_headers = [{"name": name, "in": "header", "schema": text} for name in route.headers]
    return in_path + in_query + in_headers
