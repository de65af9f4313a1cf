"""`sessiond status`: is the daemon well, and what does it do."""

from __future__ import annotations

import argparse
import contextlib

from sessiond.cli import cleanup
from sessiond.cli.connecting import (
    add_command,
    add_connection_options,
    add_json_option,
    with_client,
)
from sessiond.cli.journal import summary_of
from sessiond.cli.opencode.sharing import overview, turn_of, workspace_of
from sessiond.cli.presence import sessions_with_people, summary_lines
from sessiond.cli.terminal import one_line, paint, print_json
from sessiond.client import DaemonClient
from sessiond.errors import SessiondError
from sessiond.model import SessionPresence
from sessiond.service.opencode.overview import OpencodeStatus
from sessiond.service.status import DurabilityStatus, ServerStatus, Status

_INCIDENTS = 5


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_command(commands, "status", help="show the daemon, its server and its sessions")
    add_connection_options(parser)
    add_json_option(parser)
    parser.add_argument(
        "--socket-path", action="store_true", help="print the path of the API's socket only"
    )
    parser.set_defaults(command=_status)


def _status(options: argparse.Namespace) -> None:
    async def fetch(
        client: DaemonClient,
    ) -> tuple[Status, list[OpencodeStatus], list[SessionPresence]]:
        status: Status = (await client.call("GET", "/v1/status", Status))[0]
        opencodes: list[OpencodeStatus] = []
        present: list[SessionPresence] = []
        with contextlib.suppress(SessiondError):  # the rest is worth telling without them
            opencodes = (await overview(client)).instances
            present = await sessions_with_people(client)
        return status, opencodes, present

    status, opencodes, present = with_client(options, fetch)
    if options.json:
        print_json(status)
        return
    if options.socket_path:
        print(status.socket)
        return
    server = status.server
    others = [
        f"{instance.name} ({instance.seen_seconds_ago:g} s ago)"
        for instance in status.instances
        if instance.name != status.instance
    ]
    bus = paint("connected", "green") if status.bus_connected else paint("reconnecting", "red")
    lines = {
        "daemon": f"sessiond {status.version}, pid {status.pid}, up {status.uptime_seconds:g} s",
        "instance": status.instance,
        "socket": status.socket,
        "address": f"{status.address} (token in {status.token_file})" if status.address else "",
        "server": _server(server),
        "durability": _durability(status.durability),
        "look inside": server.redis_cli,
        "sessions": "" if status.sessions is None else str(status.sessions),
        "journal": summary_of(status.outbox),
        "copies": _copies(status),
        "clean-up": cleanup.summary_of(status.cleanup),
        "cache": _cache(status),
        "files": _files(status),
        "subscribers": f"{status.subscribers}, {status.lag} announcements behind, bus {bus}",
        "others": ", ".join(others),
    }
    for name, text in lines.items():
        if text:
            print(f"{paint(name.ljust(12), 'dim')} {text}")
    for opencode in opencodes:
        print(f"{paint('opencode'.ljust(12), 'dim')} {_opencode(opencode)}")
    for found in present:
        for line in summary_lines(found, width=12):
            print(line)


def _durability(durability: DurabilityStatus) -> str:
    if durability.mode == "local":
        return ""
    text = f"{durability.replicas} replicas confirm each write"
    if durability.degraded_since:
        text = paint(f"degraded: no confirmation since {durability.degraded_since}", "red")
    if durability.degraded_writes:
        text += f", {durability.degraded_writes} writes acknowledged without it"
    return text


def _server(server: ServerStatus) -> str:
    kind = "embedded" if server.owned else "configured"
    if server.ping_ms is None:
        away = paint(f"away for {server.away_seconds or 0:g} s", "red")
        return f"{kind}, {away}: what is known here is read, and writes are journaled"
    return f"{server.version}, {kind}, {server.ping_ms:g} ms away"


def _copies(status: Status) -> str:
    """Return what can be read without Redis."""
    replica = status.replica
    if replica is None:
        return ""
    behind = f", {replica.behind} behind" if replica.behind else ""
    return f"{replica.sessions} sessions, {replica.bytes / 2**20:.1f} MiB{behind}"


def _cache(status: Status) -> str:
    """Return what became of lookups for what tools answered, if there were any."""
    use = status.cache
    if not (use.hits or use.misses or use.stale or use.unknown):
        return ""
    unknown = f", {use.unknown} not to be told" if use.unknown else ""
    return f"{use.hits} hits, {use.misses} misses, {use.stale} stale{unknown}"


def _files(status: Status) -> str:
    """Return what of the sessions is kept outside of Redis, if anything is kept at all."""
    if status.in_memory:
        return paint("none: all is in memory only, and lost when this daemon ends", "yellow")
    files = status.files
    if files is None:
        return ""
    behind = f", {files.behind} to be written" if files.behind else ""
    text = f"{files.sessions} sessions in {files.directory}{behind}"
    for problem in files.rejected:
        told = one_line(f"{problem.kept}: {problem.reason}")
        text += paint(f"\n{'':12} not taken: {told}", "red")
    for problem in files.recent[-_INCIDENTS:]:
        where = f"{problem.session_id}/{problem.file}".rstrip("/")
        told = one_line(f"{where} {problem.what}: {problem.reason} {problem.kept}")
        text += f"\n{'':12} {told}"
    return text


def _opencode(status: OpencodeStatus) -> str:
    workspace = workspace_of(status.workspace)
    shared = f"sessions {status.sessions} in {workspace}" if workspace else "shares nothing"
    late = f", {status.lag} events behind" if status.lag else ""
    where = f"{one_line(status.version)} on {one_line(status.machine)}"
    return f"{where}: {shared}, {turn_of(status)}{late}, {one_line(status.directory)}"
