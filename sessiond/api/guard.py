"""Who may speak to the local API: one middleware before every route, events and health included.

A loopback port without these checks can be reached from any web page (DNS rebinding), and a
Unix socket by a process of another user. Sources: CVE-2025-49596, CVE-2024-28224,
CVE-2025-66416, CVE-2026-22812.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import socket
import struct
import sys
from collections.abc import Mapping
from hashlib import sha256

from aiohttp import web
from msgspec import Struct

from sessiond.errors import Forbidden, Unauthenticated, UnsupportedMediaType

_PEER_CREDENTIALS = struct.Struct("3i")
_SOCKET_HOSTS = frozenset({"localhost", "sessiond"})


class Peer(Struct, frozen=True):
    """Who is at the other end of a connection; `user` is None where the system does not tell."""

    is_local: bool
    user: int | None = None


def peer_of(transport: asyncio.BaseTransport | None) -> Peer:
    """Return who is at the other end; asked once for each connection."""
    bound = transport.get_extra_info("socket") if transport else None
    if bound is None or bound.family != socket.AF_UNIX:
        return Peer(is_local=False)
    if sys.platform != "linux":  # pragma: no cover - there the folder's 0700 must do
        return Peer(is_local=True)
    raw = bound.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
    return Peer(is_local=True, user=_PEER_CREDENTIALS.unpack(raw)[1])


class Guard:
    """Checks host, origin, identity and content type of a request.

    Args:
        token: the bearer token that TCP connections must present.
        port: the TCP port of the API, if it has one.
        allowed_hosts: further values of the Host header.
        allowed_origins: values of the Origin header that are let through.
    """

    def __init__(
        self,
        *,
        token: str,
        port: int | None,
        allowed_hosts: list[str],
        allowed_origins: list[str],
    ) -> None:
        self._token_digest = sha256(token.encode()).digest()
        names = {host.lower() for host in allowed_hosts}
        self._tcp_hosts = set(names)
        if port:
            self._tcp_hosts |= {f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]")}
        self._socket_hosts = _SOCKET_HOSTS | names
        self._origins = frozenset(allowed_origins)
        self._user = os.getuid()

    def check(self, request: web.Request, peer: Peer) -> None:
        """Let a request through, or say why not.

        Raises:
            Forbidden: wrong host, an origin that is not listed, or another user.
            Unauthenticated: no token on TCP, or a wrong one.
            UnsupportedMediaType: a body that is not JSON.
        """
        headers = request.headers
        origin = headers.get("Origin")
        if origin is not None and origin not in self._origins:
            raise Forbidden(
                "requests from web pages are refused",
                hint="list the page's origin in api.allowed_origins if you mean it",
            )
        hosts = self._socket_hosts if peer.is_local else self._tcp_hosts
        self._check_host(headers.get("Host"), hosts)
        if not request.raw_path.startswith("/"):  # GET http://host/… (RFC 9112, 3.2.2)
            self._check_host(request.raw_path.partition("://")[2].partition("/")[0], hosts)
        if peer.is_local:
            if peer.user not in (None, self._user, 0):
                raise Forbidden("the socket belongs to another user")
        else:
            self._check_token(headers.get("Authorization"))
        if _is_encoded(headers):
            raise UnsupportedMediaType("bodies are not compressed", hint="send it as it is")
        if request.body_exists and request.content_type != "application/json":
            raise UnsupportedMediaType(
                "bodies are JSON", hint="send the header Content-Type: application/json"
            )

    def _check_host(self, host: str | None, allowed: frozenset[str] | set[str]) -> None:
        if host is None or host.lower() not in allowed:
            raise Forbidden(
                f"this address is not known as {(host or '')[:80]!r}",
                hint="use localhost in the URL, or list the name in api.allowed_hosts",
            )

    def _check_token(self, authorization: str | None) -> None:
        scheme, _, token = (authorization or "").partition(" ")
        digest = sha256(token.strip().encode("utf-8", "surrogateescape")).digest()
        if scheme.lower() != "bearer" or not hmac.compare_digest(digest, self._token_digest):
            raise Unauthenticated(
                "this address needs a bearer token",
                hint="send Authorization: Bearer <content of the token file>; "
                "`sessiond status` names the file",
            )


def _is_encoded(headers: Mapping[str, str]) -> bool:
    return (
        headers.get("Content-Encoding", "identity").lower() != "identity"
        or headers.get("Transfer-Encoding", "chunked").lower() != "chunked"
    )
