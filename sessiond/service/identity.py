"""Names for new things. Pure: time and randomness are arguments."""

from __future__ import annotations

from base64 import b32hexencode
from collections.abc import Callable
from hashlib import blake2b

Entropy = Callable[[int], bytes]
"""Returns that many random bytes."""

_TIME_BYTES = 6
_RANDOM_BYTES = 9


def new_id(prefix: str, now_ms: int, entropy: Entropy) -> str:
    """Return an id that sorts by its time: prefix, milliseconds, 72 random bits."""
    return f"{prefix}_{_text(now_ms.to_bytes(_TIME_BYTES, 'big') + entropy(_RANDOM_BYTES))}"


def derived_id(prefix: str, *origins: str) -> str:
    """Return the id that always follows from the same origins: a retried request finds itself."""
    size = _TIME_BYTES + _RANDOM_BYTES
    digest = blake2b("\n".join(origins).encode(), digest_size=size).digest()
    return f"{prefix}_{_text(digest)}"


def new_session_id(key: str, now_ms: int, entropy: Entropy) -> str:
    """Return the id of a session whose creator named none: with a key, always the same."""
    return derived_id("ses", key) if key else new_id("ses", now_ms, entropy)


def new_message_id(session_id: str, key: str, place: int, *, now_ms: int, entropy: Entropy) -> str:
    """Return the id of a message whose writer named none; `place`: in its group."""
    if key:
        return derived_id("msg", session_id, key, str(place))
    return new_id("msg", now_ms, entropy)


def content_digest(content: bytes) -> str:
    """Return what tells two contents apart that came under the same idempotency key."""
    return blake2b(content, digest_size=8).hexdigest()


def _text(content: bytes) -> str:
    """Return 15 bytes as 24 digits and lower-case letters that sort as the bytes do."""
    return b32hexencode(content).decode().lower()
