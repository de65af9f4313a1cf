"""The seed of a configuration folder, which spares opencode a wait for the network.

As soon as there is any plugin, opencode makes sure at each start that `@opencode-ai/plugin` is
installed in each of its configuration folders, and waits for that. Without a network it takes more
than a minute, every time. It takes a folder as done when `node_modules` exists and all names that
`package.json` depends on, and the package's own, stand in the root of `package-lock.json`
(opencode 1.18.33, `Npm.install`). The seed is just that. Who imports the package needs the real
one: beside such files there is no seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

PACKAGE = "@opencode-ai/plugin"
MODULES = "node_modules"
MANIFEST = "package.json"
LOCK = "package-lock.json"
SEED = (MANIFEST, LOCK)

_KINDS = ("dependencies", "devDependencies", "peerDependencies", "optionalDependencies")
_SOURCES = (".js", ".ts", ".mjs", ".mts", ".cjs", ".cts", ".jsx", ".tsx")
_LARGEST_SOURCE = 1_000_000


def seed(version: str) -> dict[str, bytes]:
    """Return the seed's files for a version of opencode; an empty `node_modules` belongs to it."""
    package = {"dependencies": {PACKAGE: version}}
    lock = {"lockfileVersion": 3, "requires": True, "packages": {"": package}}
    return {MANIFEST: _text(package), LOCK: _text(lock)}


def is_prepared(folder: Path) -> bool:
    """Tell whether opencode starts without npm, as far as this configuration folder goes."""
    if not (folder / MODULES).exists():
        return False
    lock = _object(_read(folder / LOCK).get("packages"))
    return _names(_read(folder / MANIFEST)) | {PACKAGE} <= _names(_object(lock.get("")))


def importers(folder: Path) -> list[Path]:
    """Return a person's plugins and tools in a configuration folder that name the package."""
    return sorted(path for path in _sources(folder) if _names_package(path))


def _sources(folder: Path) -> Iterator[Path]:
    for kind in ("plugin", "plugins", "tool", "tools"):
        for path in (folder / kind).rglob("*"):
            is_source = MODULES not in path.parts and path.suffix in _SOURCES
            if is_source and path.name != "sessiond.js" and path.is_file():
                yield path


def _names_package(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return PACKAGE.encode() in file.read(_LARGEST_SOURCE)
    except OSError:  # then opencode cannot read it either
        return False


def _names(package: dict[str, Any]) -> set[str]:
    return {name for kind in _KINDS for name in _object(package.get(kind))}


def _read(path: Path) -> dict[str, Any]:
    """Return what a file of JSON holds; like opencode, nothing when it cannot be read."""
    try:
        return _object(msgspec.json.decode(path.read_bytes()))
    except (OSError, msgspec.DecodeError):
        return {}


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
