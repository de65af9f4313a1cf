"""Names for new things. Pure: time and randomness are arguments."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

Entropy = Callable[[int], bytes]
"""Returns that many random bytes."""

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's: no letters that look like digits
_TIME_DIGITS = 9
_RANDOM_DIGITS = 15


def new_id(prefix: str, now_ms: int, entropy: Entropy) -> str:
    """Return an id that sorts by its time: prefix, milliseconds, 75 random bits."""
    time = _digits(now_ms, _TIME_DIGITS)
    return f"{prefix}_{time}{_digits(int.from_bytes(entropy(10), 'big'), _RANDOM_DIGITS)}"


def derived_id(prefix: str, *origins: str) -> str:
    """Return the id that always follows from the same origins: a retried request finds itself."""
    digest = blake2b("\n".join(origins).encode(), digest_size=15).digest()
    return f"{prefix}_{_digits(int.from_bytes(digest, 'big'), 24)}"


def content_digest(content: bytes) -> str:
    """Return what tells two contents apart that came under the same idempotency key."""
    return blake2b(content, digest_size=8).hexdigest()


def _digits(number: int, count: int) -> str:
    digits = []
    for _ in range(count):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
