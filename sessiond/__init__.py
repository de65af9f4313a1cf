"""sessiond: one conversation, many opencodes. Sessions in Redis, in step everywhere."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sessiond.manager import Session, SessionManager

__version__ = "0.1.0"
__all__ = ["Session", "SessionManager", "__version__"]


def __getattr__(name: str) -> Any:
    """Load the Python API when it is first asked for: the command line starts faster without."""
    if name in ("Session", "SessionManager"):
        from sessiond import manager  # noqa: PLC0415

        return getattr(manager, name)
    raise AttributeError(name)
