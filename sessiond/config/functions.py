"""Functions of somebody else's that the configuration names: `package.module:function`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sessiond.config.refusals import refusal, shown

if TYPE_CHECKING:
    from sessiond.errors import ConfigurationError


def imported(name: str, key: str, takes: str, otherwise: str) -> Callable[..., Any]:
    """Return a function. To be called once, at the start.

    Args:
        name: `package.module:function`.
        key: the option that names it.
        takes: its parameters, for messages.
        otherwise: what else a person may do when it is not there.

    Raises:
        ConfigurationError: it cannot be imported, or is no function.
    """
    module, _, attribute = name.partition(":")
    try:
        function = getattr(import_module(module), attribute)
    except Exception as error:  # the module is somebody else's: it may raise whatever it likes
        found = f"{type(error).__name__} at its import"
        raise _no_function(name, key, takes, otherwise, found) from error
    if not callable(function):
        raise _no_function(name, key, takes, otherwise, shown(function))
    checked: Callable[..., Any] = function
    return checked


def _no_function(name: str, key: str, takes: str, otherwise: str, found: str) -> ConfigurationError:
    return refusal(
        where="",
        key=key,
        expected=f"a function at {name} that takes ({takes})",
        found=found,
        hint=f"install the module where sessiond runs, or {otherwise}",
    )
