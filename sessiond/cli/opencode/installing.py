"""`sessiond opencode install` and `uninstall`: the plugin, in opencode's configuration."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any, get_args

import msgspec

from sessiond.cli.connecting import (
    add_command,
    add_connection_options,
    add_json_option,
    load_configuration,
)
from sessiond.cli.terminal import one_line, paint, print_json
from sessiond.errors import InvalidInput
from sessiond.opencode.install import install, uninstall
from sessiond.opencode.installed import Report, copies, read_settings
from sessiond.opencode.locate import (
    SUPPORTED,
    configuration_folders,
    database_path,
    find_opencode,
    global_folder,
    is_project,
    project_folder,
    version_of,
)
from sessiond.opencode.protocol import Mode
from sessiond.opencode.seed import is_prepared
from sessiond.paths import api_socket

_COLOURS = {"create": "green", "replace": "yellow", "remove": "red", "keep": "dim"}
_DONE = {"create": "created", "replace": "replaced", "remove": "removed", "keep": "kept"}


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    adding = add_command(
        commands,
        "install",
        help="put the plugin into opencode, or bring it up to date",
        description="Put the plugin into opencode's configuration, or bring it up to date. What "
        "you have there stays. Settings that are not given stay as they are.",
    )
    add_connection_options(adding)
    adding.add_argument("--url", help="the daemon's loopback port: http://127.0.0.1:PORT")
    adding.add_argument("--token-file", metavar="PATH", help="its token (default: by the socket)")
    adding.add_argument("--mode", choices=get_args(Mode), help="how turns are kept apart")
    adding.add_argument("--share", choices=("on", "off"), help="whether sessions are shared")
    adding.add_argument(
        "--share-key", metavar="KEY", help="share with whom has this key, not by git repository"
    )
    add_opencode_option(adding)
    adding.add_argument("--force", action="store_true", help="replace a plugin that was changed")
    adding.set_defaults(command=_install)
    removing = add_command(
        commands, "uninstall", help="take out what install put in, and nothing else"
    )
    removing.set_defaults(command=_uninstall)
    for parser in (adding, removing):
        where = parser.add_mutually_exclusive_group()
        where.add_argument(
            "--global", dest="project", action="store_false", help="for all projects (default)"
        )
        where.add_argument(
            "--project", action="store_true", help="for the project of the current folder only"
        )
        parser.set_defaults(project=False)
        parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
        add_json_option(parser)


def add_opencode_option(parser: argparse.ArgumentParser) -> None:
    """Add --opencode."""
    parser.add_argument("--opencode", default="", metavar="PATH", help="opencode, if not on PATH")


def _install(options: argparse.Namespace) -> None:
    folder = _folder(options)
    settings = _settings(options, folder)
    if options.project:
        _check_project(Path.cwd(), settings.get("share_key") or read_settings(folder).share_key)
    binary = find_opencode(options.opencode, os.environ)
    version = version_of(binary) if binary else ""
    report = install(
        folder,
        settings,
        opencode=version,
        dry_run=options.dry_run,
        force=options.force,
    )
    report.notes += [*_version_notes(version), *_notes_elsewhere(folder)]
    _print(report, options, opencode=version)
    if options.json or options.dry_run:
        return
    if not read_settings(folder).is_sharing:
        print("Sharing is off; `sessiond opencode install --share on` switches it on.")
        return
    print("Sessions are shared by every opencode that is started from now on, while the daemon")
    print("runs (`sessiond run`). `sessiond opencode status` shows them, `… doctor` checks it all.")


def _uninstall(options: argparse.Namespace) -> None:
    folder = _folder(options)
    others = [
        copy
        for each in configuration_folders(Path.cwd(), os.environ)
        for copy in copies(each)
        if each != folder
    ]
    database = database_path(os.environ)
    notes = None if others else database.with_name(f"{database.name}.sessiond")
    report = uninstall(folder, notes, dry_run=options.dry_run)
    if not report.steps:
        report.notes.append(f"Nothing of sessiond's is in {report.folder}.")
    report.notes += [
        f"{copy} is still there; remove that one too, if you do not want it." for copy in others
    ]
    _print(report, options)


def _folder(options: argparse.Namespace) -> Path:
    return project_folder(Path.cwd()) if options.project else global_folder(os.environ)


def _check_project(directory: Path, share_key: str) -> None:
    """Refuse a directory in which a project's plugin could share nothing.

    Raises:
        InvalidInput: it is the root of the file system, or in no git repository and without a key.
    """
    if is_project(directory):
        return
    if directory == Path("/"):
        raise InvalidInput(
            "/ is no project: opencode would load the plugin everywhere below it",
            hint="go to the project's folder, or leave --project out to install it for all",
        )
    if not share_key:
        raise InvalidInput(
            f"{directory} is in no git repository, so nobody could tell whose project it is",
            hint="go to the project's folder, or give --share-key KEY to share this folder's",
        )


def _settings(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the settings that the command line gives, and the daemon's configuration."""
    names = ("url", "token_file", "socket", "mode", "share", "share_key")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    if given.get("url") and given.get("socket"):
        raise InvalidInput("--url and --socket say two things", hint="choose one of them")
    for name in ("socket", "token_file"):
        if name in given:
            given[name] = str(Path(given[name]).expanduser().absolute())
    api = load_configuration(options).api
    socket = api_socket(api.socket, os.environ)
    before = read_settings(folder)
    if given.get("url") or (given.get("token_file") and before.url):
        beside = Path(api.token_file).expanduser() if api.token_file else None
        given.setdefault("token_file", str((beside or socket.with_name("api.token")).absolute()))
    elif given.get("token_file"):
        raise InvalidInput("a token is for a url", hint="give --url too, or leave it out")
    is_placed = before.url or before.socket or given.get("socket")
    if not is_placed and not given.get("url") and socket != api_socket("", os.environ):
        given["socket"] = str(socket.absolute())
    return given


def _version_notes(version: str) -> list[str]:
    if not version or version in SUPPORTED:
        return []
    untested = f"opencode {version} is not tested with this sessiond ({', '.join(SUPPORTED)} is): "
    return [untested + "`sessiond opencode doctor` tries whether it works."]


def _notes_elsewhere(folder: Path) -> list[str]:
    """Return what a person should know of the other folders that opencode reads here."""
    notes = []
    others = [global_folder(os.environ), *configuration_folders(Path.cwd(), os.environ)]
    for other in dict.fromkeys(others):
        if other == folder:
            continue
        notes += [
            f"{copy} is another copy: opencode loads both. Uninstall one of them."
            for copy in copies(other)
        ]
        if not is_prepared(other):
            notes.append(
                f"without a network opencode waits over a minute for {other} too, at each start, "
                "until it was once started with one."
            )
    return notes


def _print(report: Report, options: argparse.Namespace, **more: str) -> None:
    if options.json:
        facts = {"changed": report.changed, "dry_run": options.dry_run}
        print_json({**msgspec.to_builtins(report), **facts, **more})
        return
    for step in report.steps:
        word = f"would {step.action}" if options.dry_run else _DONE[step.action]
        if step.action == "keep":
            word = _DONE["keep"]
        reason = f"  ({step.reason})" if step.reason else ""
        print(f"{paint(word.ljust(14), _COLOURS[step.action])} {one_line(step.path)}{reason}")
    for note in report.notes:
        print(f"{paint('note:', 'yellow')} {one_line(note)}")
