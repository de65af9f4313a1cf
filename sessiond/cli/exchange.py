"""`sessiond export` and `sessiond import`: sessions as files, out and in."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sessiond.backend import Backend
from sessiond.cli.connecting import (
    add_command,
    add_connection_options,
    add_json_option,
    with_client,
)
from sessiond.cli.exits import CONFLICT, OK
from sessiond.cli.terminal import one_line, paint, print_json
from sessiond.client import DaemonClient
from sessiond.errors import InvalidInput
from sessiond.model import Cache, Session

if TYPE_CHECKING:
    from sessiond.exchange import ImportReport


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    export = add_command(
        commands,
        "export",
        help="write sessions as files",
        description="Write sessions as files: as folders of JSON files, as one JSON file each, or "
        "as `opencode export` does. One session goes to the standard output, without --to.",
    )
    export.add_argument("id", nargs="*", help="the sessions' ids")
    export.add_argument("--all", action="store_true", help="all sessions")
    export.add_argument("--to", type=Path, metavar="FOLDER", help="the folder to write them into")
    export.add_argument(
        "--format",
        choices=("json", "folder", "opencode"),
        help="json (one file), folder (the default with --to), or opencode",
    )
    export.add_argument(
        "--directory",
        default="",
        metavar="PATH",
        help="with opencode: the project's folder there (default: the current one)",
    )
    export.set_defaults(command=_export)
    import_ = add_command(
        commands,
        "import",
        help="take in sessions from files",
        description="Take in sessions from folders of JSON files, from JSON files, and from what "
        "`opencode export` wrote. What is there already is merged with by the rules.",
    )
    import_.add_argument("path", nargs="+", type=Path, help="files, or folders")
    import_.add_argument("--dry-run", action="store_true", help="only tell what it would do")
    import_.set_defaults(command=_import)
    for parser in (export, import_):
        add_connection_options(parser)
    add_json_option(import_)


def _export(options: argparse.Namespace) -> None:
    kind = options.format or ("folder" if options.to else "json")
    if bool(options.id) == options.all:
        raise InvalidInput("name sessions, or say --all", hint="`sessiond sessions` lists them")
    if not options.to and (options.all or len(options.id) > 1 or kind == "folder"):
        raise InvalidInput("say where to", hint="--to FOLDER")
    directory = str(Path(options.directory or ".").absolute())

    async def export(client: DaemonClient) -> None:
        # The daemon's parts that this needs stay out of the other commands' start.
        from sessiond.exchange import cached_of  # noqa: PLC0415

        for session_id in options.id or await _all_ids(client):
            session = await client.load(session_id)
            cache = await cached_of(client, session_id)
            if options.to is None:
                sys.stdout.buffer.write(_encoded(session, cache, kind, directory))
            else:
                print(_written(session, cache, kind, directory, options.to))

    with_client(options, export)


async def _all_ids(backend: Backend) -> list[str]:
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = await backend.list_sessions(cursor=cursor, limit=500)
        found += [summary.metadata.session_id for summary in page.sessions]
        cursor = page.cursor
        if cursor is None:
            return found


def _encoded(session: Session, cache: Cache, kind: str, directory: str) -> bytes:
    from sessiond.exchange import bundle_of, opencode_export_of  # noqa: PLC0415 - see `_export`

    if kind == "json":
        return bundle_of(session, cache)
    return opencode_export_of(session, directory)


def _written(session: Session, cache: Cache, kind: str, directory: str, folder: Path) -> Path:
    """Write a session into a folder; return where."""
    if kind == "folder":
        from sessiond.exchange import write_folder  # noqa: PLC0415 - see `_export`

        return write_folder(session, cache, folder)
    target = folder / f"{session.metadata.session_id}.json"
    content = _encoded(session, cache, kind, directory)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with target.open("xb") as file:
            target.chmod(0o600)
            file.write(content)
    except FileExistsError:
        raise InvalidInput(f"{target} is there already", hint="choose another folder") from None
    except OSError as error:
        raise InvalidInput(f"{target} cannot be written: {error}") from error
    return target


def _import(options: argparse.Namespace) -> int:
    from sessiond.exchange import import_session, read_sessions  # noqa: PLC0415 - see `_export`

    async def import_all(client: DaemonClient) -> list[ImportReport]:
        return [
            await import_session(client, found, dry=options.dry_run)
            for path in options.path
            for found in read_sessions(path)
        ]

    reports = with_client(options, import_all)
    if options.json:
        print_json(reports)
    else:
        for report in reports:
            _tell(report, dry=options.dry_run)
    return CONFLICT if any(report.refused for report in reports) else OK


def _tell(report: ImportReport, *, dry: bool) -> None:
    done = "would be " if dry else ""
    what = f"{done}created" if report.created else f"{done}merged"
    print(f"{report.session_id}  {what}, {report.writes} writes")
    for number in report.conflicts:
        where = f"{report.session_id} {number}"
        print(f"  {paint('conflict', 'yellow')} {number}: sessiond conflicts show {where}")
    for reason in report.refused:
        print(f"  {paint('refused', 'red')} {one_line(reason)}")
