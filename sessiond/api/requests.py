"""Reading requests: every value from outside is checked here, before anything acts on it."""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec
from aiohttp import web

from sessiond.codec import json
from sessiond.errors import InvalidInput, NotFound
from sessiond.model import DOCUMENTS, DocumentName
from sessiond.service.writing import Request

Body = TypeVar("Body")

_SESSION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_RECORD_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_CLIENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_KEY = re.compile(r"[\x21-\x7e]{1,128}")
_ETAG = re.compile(r'"?([0-9a-f]{14}:\d{1,15}|\d{1,15})"?')
_NUMBER = re.compile(r"\d{1,15}", re.ASCII)
_ANY = msgspec.json.Decoder()


def session_id(request: web.Request) -> str:
    """Return the session id of the address."""
    return _matched(request, "session_id", _SESSION_ID, "64 letters, digits, '-' or '_'")


def message_id(request: web.Request) -> str:
    """Return the message id of the address."""
    return _matched(request, "message_id", _RECORD_ID, "128 letters, digits, '-', '_' or '.'")


def part_id(request: web.Request) -> str:
    """Return the part id of the address."""
    return _matched(request, "part_id", _RECORD_ID, "128 letters, digits, '-', '_' or '.'")


def workspace(request: web.Request) -> str:
    """Return the workspace key of the address."""
    return _matched(request, "workspace", _RECORD_ID, "128 letters, digits, '-', '_' or '.'")


def document_name(request: web.Request) -> DocumentName:
    """Return the document's name of the address.

    Raises:
        NotFound: there is no such document.
    """
    for name in DOCUMENTS:
        if request.match_info["document"] == name:
            return name
    raise NotFound(
        f"there is no {request.path!r}", hint=f"the documents are {', '.join(DOCUMENTS)}"
    )


def write_request(request: web.Request) -> Request:
    """Return what the headers say about a write: Idempotency-Key, If-Match, Sessiond-Client."""
    return Request(
        key=_header(request, "Idempotency-Key", _KEY, "1 to 128 visible ASCII characters"),
        expected=_expected(request),
        client=_header(request, "Sessiond-Client", _CLIENT, "64 letters, digits, '-', '_' or '.'"),
    )


async def body(request: web.Request, decoder: msgspec.json.Decoder[Body]) -> Body:
    """Return the decoded body."""
    data = await request.read()
    if not data:
        raise InvalidInput("the body is empty", hint="send JSON")
    return json.decode(data, decoder)


async def any_body(request: web.Request) -> object:
    """Return a body of any shape."""
    return await body(request, _ANY)


def check_query(request: web.Request, *known: str) -> None:
    """Refuse query parameters that would be ignored."""
    for name in request.query:
        if name not in known:
            hint = f"these are known here: {', '.join(known)}" if known else "none is known here"
            raise InvalidInput(f"unknown query parameter {name[:80]!r}", hint=hint)


def number(request: web.Request, name: str, default: int, lowest: int, highest: int) -> int:
    """Return a whole number from the query."""
    text = request.query.get(name)
    if text is None:
        return default
    if not _NUMBER.fullmatch(text) or not lowest <= int(text) <= highest:
        raise InvalidInput(
            f"{name} is {text[:80]!r}, expected a whole number from {lowest} to {highest}"
        )
    return int(text)


def _expected(request: web.Request) -> str:
    value = request.headers.get("If-Match")
    if value is None or value == "*":
        return ""
    match = _ETAG.fullmatch(value)
    if match is None:
        raise InvalidInput(
            f"If-Match is {value[:80]!r}",
            hint='send the version as received, for example "00f3a9c1d2e4b7:12"',
        )
    return match[1]


def _header(request: web.Request, name: str, pattern: re.Pattern[str], expected: str) -> str:
    value = request.headers.get(name)
    if value is None:
        return ""
    if not pattern.fullmatch(value):
        raise InvalidInput(f"{name} is {value[:80]!r}, expected {expected}")
    return value


def _matched(request: web.Request, name: str, pattern: re.Pattern[str], expected: str) -> str:
    value = request.match_info[name]
    if not pattern.fullmatch(value):
        raise InvalidInput(
            f"{name} is {value[:80]!r}, expected up to {expected}, a letter or digit first"
        )
    return value
