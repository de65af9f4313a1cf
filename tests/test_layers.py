"""Who may import whom. The arrows of the design, held by reading every import of the source.

Imports count wherever they stand: inside functions, below TYPE_CHECKING, behind `try`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import sessiond

ROOT = Path(sessiond.__file__).parent

LAYERS: dict[str, tuple[str, ...]] = {
    "errors": (),
    "model": (),
    "codec": ("codec", "errors", "model"),
    "sync": ("sync", "codec", "errors", "model"),
    "policy": ("policy", "codec", "errors", "model"),
    "config": ("config", "sync.rules", "sync.strategies", "errors"),
    "service.identity": (),
    "service.clock": (),
    "opencode": ("opencode", "sync", "codec", "model", "errors"),
    "journal": ("journal", "folders", "sync", "codec", "model", "errors"),
    "replica": ("replica", "folders", "sync", "codec", "model", "errors"),
    "archive": ("archive", "errors"),
    "files": ("files", "folders", "sync", "codec", "model", "errors"),
    "service": (
        *("service", "store", "policy", "journal", "replica", "files", "archive", "opencode"),
        *("sync", "codec", "model", "errors"),
    ),
    "api": (
        *("api", "service", "journal", "opencode.protocol", "policy", "sync", "codec", "model"),
        "errors",
    ),
    "cli": (
        *("cli", "client", "backend", "exchange", "config", "paths", "model", "errors"),
        *("store.keys", "service.status", "service.finding", "service.opencode.overview"),
        *("service.health.scanning", "service.health.repairing", "service.health.tracing"),
        *("journal.reports", "opencode", "daemon"),
    ),
}
"""Layer → what of sessiond it may import. The longest name that fits a module is its layer."""

BARRED: dict[str, tuple[str, ...]] = {
    "client": ("store", "service", "api", "core", "daemon"),
    "store": ("service", "api", "core", "cli"),
}
"""Module or package → what of sessiond it must not import."""

IMPURE = (
    *("asyncio", "redis", "hiredis", "aiohttp", "sqlite3"),
    *("os", "pathlib", "socket", "time", "random", "secrets"),
)
PURE = (
    *("codec", "sync", "policy"),
    *("journal.record", "journal.carving", "archive.record"),
    *("files.layout", "files.state"),
    *("opencode.mapping", "opencode.difference", "opencode.records", "opencode.protocol"),
    "opencode.exported",
)

RESERVED: dict[str, tuple[str, ...]] = {
    "redis": ("store", "core"),
    "hiredis": ("store", "core"),
    "aiohttp": ("api", "client"),
    "sqlite3": ("opencode.database", "journal", "replica"),
}
"""Library → the only places that may import it."""

LAZY = {"cli": ("daemon",)}
"""Layer → what it may import inside functions only, because most commands need none of it."""


class Import:
    """One import of one module. `name` is its target; of ours, without `sessiond.`."""

    def __init__(self, name: str, line: int, *, lazy: bool) -> None:
        self.ours = name == "sessiond" or name.startswith("sessiond.")
        self.name = name.removeprefix("sessiond").removeprefix(".") if self.ours else name
        self.line = line
        self.lazy = lazy

    def leads_into(self, place: str) -> bool:
        return self.ours and _is_in(self.name, place)


def imports_of(source: str, module: str) -> Iterator[Import]:
    """All imports of a module's source. `from x import y` counts as x.y when x is a package."""
    tree = ast.parse(source)
    functions = [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    inside = {id(child) for function in functions for child in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = _targets(node, module)
        else:
            continue
        for name in names:
            yield Import(name, node.lineno, lazy=id(node) in inside)


def _targets(node: ast.ImportFrom, module: str) -> list[str]:
    origin = node.module or ""
    if node.level:
        package = ["sessiond", *module.split(".")][: -node.level]
        origin = ".".join([*package, *filter(None, [origin])])
    if (ROOT.parent / origin.replace(".", "/")).is_dir():
        return [f"{origin}.{alias.name}" for alias in node.names]
    return [origin]


def violations(source: str, module: str) -> list[str]:
    """What a module imports that it must not, in words."""
    return [
        f"sessiond.{module}:{found.line} imports {found.name}: {reason}"
        for found in imports_of(source, module)
        for reason in _objections(found, module)
    ]


def _objections(found: Import, module: str) -> Iterator[str]:
    layer = max((name for name in LAYERS if _is_in(module, name)), key=len, default=None)
    if found.ours and found.name != "__version__":
        allowed = LAYERS[layer] if layer else None
        if allowed is not None and not any(_is_in(found.name, place) for place in allowed):
            yield f"{layer} may import only {', '.join(allowed) or 'nothing of sessiond'}"
        for barred in (name for name in BARRED if _is_in(module, name)):
            if any(found.leads_into(place) for place in BARRED[barred]):
                yield f"{barred} must not know of it"
        if not found.lazy and any(found.leads_into(place) for place in LAZY.get(layer or "", ())):
            yield f"{layer} imports it inside functions only"
    if found.ours:
        return
    library = found.name.partition(".")[0]
    if library in IMPURE and any(_is_in(module, place) for place in PURE):
        yield "pure code has no input, output, time or chance"
    if library in RESERVED and not any(_is_in(module, place) for place in RESERVED[library]):
        yield f"only {' and '.join(RESERVED[library])} may"


def _is_in(name: str, place: str) -> bool:
    return name == place or name.startswith(f"{place}.")


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def sources() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", sources(), ids=module_of)
def test_a_module_imports_only_what_its_layer_may(path: Path) -> None:
    assert violations(path.read_text(encoding="utf-8"), module_of(path)) == []


def test_every_layer_of_the_rules_that_should_exist_does() -> None:
    modules = [module_of(path) for path in sources()]
    for layer in {*LAYERS, *BARRED}:
        assert any(_is_in(module, layer) for module in modules), layer


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("model", "from sessiond.errors import InvalidInput"),
        ("model", "from sessiond import SessionManager"),
        ("errors", "import sessiond.model"),
        ("codec.json", "from sessiond.sync import position"),
        ("codec.json", "import os.path"),
        ("sync.replica", "from sessiond.store.log import LogReader"),
        ("sync.replica", "def f():\n    import asyncio"),
        ("sync.parts", "from time import time"),
        ("sync.parts", "if TYPE_CHECKING:\n    from pathlib import Path"),
        ("sync.parts", "from ..store import log"),
        ("policy.access", "import secrets"),
        ("service.clock", "from sessiond.model import Message"),
        ("service.live.feeds", "from redis.asyncio import Redis"),
        ("service.live.feeds", "from sessiond import core"),
        ("service.live.feeds", "from sessiond.api.sse import EventStreams"),
        ("service.live.feeds", "from sessiond.config import Configuration"),
        ("api.handlers", "from sessiond.store.keys import Keys"),
        ("api.handlers", "from sessiond.core import Core"),
        ("api.opencode", "from sessiond.opencode.database import Database"),
        ("opencode.mapping", "import sqlite3"),
        ("opencode.saved", "import sqlite3"),
        ("journal.journal", "from sessiond.store.keys import Keys"),
        ("journal.journal", "from sessiond.service.clock import Clock"),
        ("journal.carving", "import sqlite3"),
        ("replica.replica", "from sessiond.store.log import LogReader"),
        ("replica.file", "from sessiond.journal.connection import open_file"),
        ("client", "from sessiond.service.status import Status"),
        ("client", "import sessiond.daemon.daemon"),
        ("client", "import redis"),
        ("store.log", "from sessiond.service.clock import Clock"),
        ("store.log", "import aiohttp"),
        ("cli.run", "from sessiond.daemon.daemon import Daemon"),
        ("cli.run", "from sessiond.store.sessions import SessionStore"),
        ("cli.run", "from sessiond.service.content.sessions import Sessions"),
        ("config.load", "from sessiond.paths import data_folder"),
        ("daemon", "import hiredis"),
        ("daemon", "try:\n    import aiohttp.web\nexcept ImportError:\n    pass"),
    ],
)
def test_a_forbidden_import_is_found(module: str, source: str) -> None:
    assert violations(source, module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("sync.replica", "from sessiond.codec import json\nfrom hashlib import blake2b"),
        ("service.live.feeds", "import asyncio\nfrom sessiond.store.bus import Bus"),
        ("service.clock", "import time"),
        ("journal.connection", "import sqlite3\nfrom sessiond.errors import JournalUnavailable"),
        ("replica.file", "import sqlite3\nfrom sessiond.sync.outline import Outline"),
        ("cli.run", "def f():\n    from sessiond.daemon.daemon import Daemon"),
        ("cli.inspect_redis", "from sessiond.store.keys import TABLE"),
        ("core", "from redis.asyncio import Redis\nfrom sessiond.store.bus import Bus"),
        ("daemon", "from sessiond.core import Core"),
        ("api.schema", "from sessiond import __version__"),
        ("store.embedded.probe", "from redis.asyncio import Redis"),
    ],
)
def test_an_allowed_import_is_not_objected_to(module: str, source: str) -> None:
    assert violations(source, module) == []
