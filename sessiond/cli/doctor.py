"""`sessiond doctor`: what is wrong here, what to do about it, and what can be relied on."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator

from sessiond.cli.connecting import (
    add_command,
    add_connection_options,
    add_json_option,
    with_client,
)
from sessiond.cli.findings import failed_by, report
from sessiond.cli.opencode.doctor import has_plugin, plugin_findings
from sessiond.cli.scan import scan
from sessiond.cli.terminal import one_line, paint
from sessiond.client import DaemonClient
from sessiond.errors import SessiondError
from sessiond.service.finding import Finding, ok, skipped
from sessiond.service.status import Diagnosis, Health, Promise

_WIDTH = 88
_INDENT = 12


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "doctor",
        help="check daemon, Redis and folders, and say what can be relied on",
        description="Check the daemon, its Redis, its folders and opencode's plugin, say what to "
        "do, and what is promised of writes on this installation. The exit code is that of the "
        "first check that failed.",
    )
    add_connection_options(parser)
    add_json_option(parser)
    parser.add_argument(
        "--scan",
        nargs="*",
        metavar="ID",
        help="instead, compare all that Redis holds of sessions with their logs, and check their "
        "JSON files: of these, or all; exit code 12 where something is damaged",
    )
    parser.set_defaults(command=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    if options.scan is not None:
        return scan(options)
    daemon, diagnosis = _ask(options)
    code = report(
        _findings(daemon, diagnosis),
        as_json=options.json,
        well="All is well.",
        promises=diagnosis.promises,
    )
    if not options.json and diagnosis.promises:
        print("\nWhat you can rely on here:")
        for promise in diagnosis.promises:
            _print_promise(promise)
    return code


def _ask(options: argparse.Namespace) -> tuple[Finding, Diagnosis]:
    """Have the daemon look, as far as there is one."""

    async def fetch(client: DaemonClient) -> tuple[Health, Diagnosis]:
        health: Health = (await client.call("GET", "/v1/health", Health))[0]
        diagnosis: Diagnosis = (await client.call("GET", "/v1/doctor", Diagnosis))[0]
        return health, diagnosis

    try:
        health, diagnosis = with_client(options, fetch)
    except SessiondError as error:
        return failed_by("daemon", error), Diagnosis(findings=[], promises=[])
    return ok("daemon", f"sessiond {health.version} answers"), diagnosis


def _findings(daemon: Finding, diagnosis: Diagnosis) -> Iterator[Finding]:
    yield daemon
    yield from diagnosis.findings
    if has_plugin():
        yield from plugin_findings("")
    else:
        yield skipped("opencode", "has no plugin; `sessiond opencode install` shares its sessions")


def _print_promise(promise: Promise) -> None:
    first, *rest = textwrap.wrap(one_line(promise.promise), _WIDTH - _INDENT)
    print(f"{paint(promise.of.ljust(_INDENT - 1), 'dim')} {first}")
    for line in rest:
        print(f"{'':{_INDENT}}{line}")
