"""`sessiond opencode doctor`: what keeps sessions from being shared, and what to do about it."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

from sessiond.cli.connecting import add_command, add_json_option
from sessiond.cli.findings import failed_by, report
from sessiond.cli.opencode.installing import add_opencode_option
from sessiond.cli.opencode.sharing import overview
from sessiond.cli.terminal import one_line
from sessiond.client import DaemonClient
from sessiond.errors import (
    ConfigurationError,
    DaemonUnreachable,
    NotFound,
    SessiondError,
    StoreUnavailable,
)
from sessiond.opencode.database import Database
from sessiond.opencode.installed import copies, packaged, read_record, read_settings
from sessiond.opencode.locate import (
    SUPPORTED,
    configuration_folders,
    database_path,
    find_opencode,
    version_of,
)
from sessiond.opencode.seed import importers, is_prepared
from sessiond.opencode.settings import Settings, effective
from sessiond.opencode.trial import try_out
from sessiond.paths import api_socket
from sessiond.service.finding import Finding, ok, skipped, warning
from sessiond.service.opencode.overview import Overview
from sessiond.service.status import Health, Status


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "doctor",
        help="check everything that sharing needs, and say what to do",
        description="Check opencode, the plugin, the daemon, the database and the clock, and try "
        "opencode out in a scratch folder. Run it where and as you run opencode. The exit code is "
        "that of the first check that failed.",
    )
    add_opencode_option(parser)
    parser.add_argument("--quick", action="store_true", help="do not try opencode out (3 s)")
    add_json_option(parser)
    parser.set_defaults(command=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    return report(_findings(options), as_json=options.json, well="Sessions can be shared.")


def plugin_findings(opencode: str) -> Iterator[Finding]:
    """Check opencode and the plugin in it, without a daemon and without starting opencode.

    Args:
        opencode: path of the program; empty: the one on PATH.
    """
    folders = configuration_folders(Path.cwd(), os.environ)
    yield _opencode(opencode)[2]
    yield _plugin(folders)
    yield _settings(folders)[1]
    yield _offline(folders)


def has_plugin() -> bool:
    """Tell whether the plugin is in any of opencode's folders."""
    return any(copies(folder) for folder in configuration_folders(Path.cwd(), os.environ))


def _findings(options: argparse.Namespace) -> Iterator[Finding]:
    folders = configuration_folders(Path.cwd(), os.environ)
    binary, version, found = _opencode(options.opencode)
    yield found
    yield _plugin(folders)
    settings, found = _settings(folders)
    yield found
    yield _offline(folders)
    yield from _daemon(settings)
    yield _database()
    if options.quick or binary is None or not version:
        reason = "--quick" if options.quick else "there is no opencode to try out"
        yield skipped("trial", reason)
    else:
        yield _trial(binary, version)


def _opencode(named: str) -> tuple[Path | None, str, Finding]:
    check = "opencode"
    try:
        binary = find_opencode(named, os.environ)
        if binary is None:
            raise NotFound(
                "opencode was not found on PATH",
                hint="install it, or name it with --opencode PATH",
            )
        version = version_of(binary)
    except SessiondError as error:
        return None, "", failed_by(check, error)
    if version in SUPPORTED:
        return binary, version, ok(check, f"{version} at {binary}")
    return (
        binary,
        version,
        warning(
            check,
            f"{version} at {binary} is not tested with this sessiond",
            f"if the trial below fails, use {SUPPORTED[-1]}, or look for a newer sessiond",
        ),
    )


def _plugin(folders: list[Path]) -> Finding:
    check = "plugin"
    found = [copy for folder in folders for copy in copies(folder)]
    try:
        if not found:
            raise ConfigurationError(
                "the plugin is in none of opencode's folders: " + _listed(folders),
                hint="run `sessiond opencode install`",
            )
        if len(found) > 1:
            raise ConfigurationError(
                f"opencode loads several copies: {_listed(found)}",
                hint="keep one: `sessiond opencode uninstall`, with --project or without",
            )
        if found[0].read_bytes() != packaged():
            raise ConfigurationError(
                f"{found[0]} is not the plugin of this sessiond",
                hint="run `sessiond opencode install`, for a project with --project; then start "
                "opencode anew",
            )
    except OSError as error:
        return failed_by(check, ConfigurationError(f"{found[0]} cannot be read: {error.strerror}"))
    except SessiondError as error:
        return failed_by(check, error)
    return ok(check, f"{found[0]} is up to date")


def _settings(folders: list[Path]) -> tuple[Settings | None, Finding]:
    check = "settings"
    holding = next((folder for folder in folders if copies(folder)), None)
    try:
        stored = read_settings(holding) if holding else Settings()
        settings = effective(stored, os.environ, api_socket(_environ_socket(), os.environ))
    except SessiondError as error:
        return None, failed_by(check, error)
    place = settings.url or settings.socket
    text = f"mode {settings.mode}, daemon at {place}"
    if settings.share_key:
        text += f", share key {settings.share_key}"
    if not settings.is_sharing:
        remedy = "unset SESSIOND_SHARE, or `sessiond opencode install --share on`"
        return settings, warning(check, "sharing is switched off", remedy)
    return settings, ok(check, text)


def _environ_socket() -> str:
    return os.environ.get("SESSIOND_API_SOCKET", "")


def _offline(folders: list[Path]) -> Finding:
    check = "start offline"
    if not any(copies(folder) for folder in folders):
        return skipped(check, "there is no plugin")
    for folder in folders:
        try:
            seeded = bool((record := read_record(folder)) and record.opencode)
        except SessiondError as error:
            return failed_by(check, error)
        if seeded and (needing := importers(folder)):
            return warning(
                check,
                f"{needing[0]} imports opencode's plugin package, which is not there",
                "run `sessiond opencode install` again: then opencode fetches it",
            )
    waiting = [folder for folder in folders if not is_prepared(folder)]
    if waiting:
        return warning(
            check,
            f"without a network opencode waits over a minute at each start for {_listed(waiting)}",
            "start opencode there once with a network, or set npm_config_fetch_retries=0",
        )
    return ok(check, "opencode waits for nothing")


def _daemon(settings: Settings | None) -> Iterator[Finding]:
    if settings is None:
        yield skipped("daemon", "the settings are not valid")
        return
    try:
        health, status, found = asyncio.run(_ask(settings))
    except DaemonUnreachable as error:
        error.hint = (
            "start one with `sessiond run`; if one runs elsewhere, tell the plugin: "
            "`sessiond opencode install --socket PATH`"
        )
        yield failed_by("daemon", error)
        return
    except SessiondError as error:
        yield failed_by("daemon", error)
        return
    if not health.ready:
        unavailable = StoreUnavailable(
            "the daemon answers, but its Redis does not",
            hint="`sessiond status` names the server; is it up, and reachable from here?",
        )
        yield failed_by("daemon", unavailable)
        return
    yield ok("daemon", f"sessiond {status.version}, {status.server.version}, pid {status.pid}")
    yield _attached(status, found)
    yield _clock(found)


async def _ask(settings: Settings) -> tuple[Health, Status, Overview]:
    """Ask the daemon that the plugin with these settings would ask, as it would."""
    client = DaemonClient(
        socket="" if settings.url else settings.socket,
        address=settings.url,
        token=_token(settings) if settings.url else "",
    )
    try:
        health: Health = (await client.call("GET", "/v1/health", Health))[0]
        status: Status = (await client.call("GET", "/v1/status", Status))[0]
        return health, status, await overview(client)
    finally:
        await client.close()


def _token(settings: Settings) -> str:
    if given := os.environ.get("SESSIOND_TOKEN"):
        return given.strip()
    try:
        return Path(settings.token_file).read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"the token file {settings.token_file!r} cannot be read: {error}",
            hint="`sessiond status` names it; give it to `sessiond opencode install --token-file`",
        ) from error


def _attached(status: Status, found: Overview) -> Finding:
    check = "attached"
    here = [one for one in found.instances if one.machine == status.instance]
    away = len(found.instances) - len(here)
    elsewhere = f"; {away} on other machines" if away else ""
    if not here:
        return warning(
            check,
            f"no opencode of this machine is attached{elsewhere}",
            "start opencode, or start it anew if it runs: plugins are loaded at its start",
        )
    unshared = [one for one in here if not one.workspace]
    if unshared:
        return warning(
            check,
            f"nothing is shared in {one_line(unshared[0].directory)}",
            "it is in no git repository with a commit: give it a share key, with "
            "`sessiond opencode install --share-key KEY`",
        )
    blind = [one for one in here if not one.live]
    if blind:
        return warning(
            check,
            f"the views of {one_line(blind[0].instance)} do not move by themselves",
            "what comes from elsewhere shows when a session is opened again",
        )
    return ok(check, f"{len(here)} of this machine{elsewhere}")


def _clock(found: Overview) -> Finding:
    check = "clock"
    ahead = found.clock_ahead_ms
    if ahead == 0:
        return ok(check, "agrees with Redis's")
    side = "ahead of" if ahead > 0 else "behind"
    return warning(
        check,
        f"is {abs(ahead) / 1000:g} s {side} Redis's",
        "sessiond corrects what it brings in; better set the clock (NTP) on both machines",
    )


def _database() -> Finding:
    check = "database"
    path = database_path(os.environ)
    if not path.exists():
        return warning(check, f"{path} does not exist yet", "start opencode once")
    database = Database(path)
    try:
        database.version()
        database.sessions("global")
    except SessiondError as error:
        return failed_by(check, error)
    finally:
        database.close()
    return ok(check, f"{path} can be read")


def _trial(binary: Path, version: str) -> Finding:
    check = "trial"
    trial = try_out(binary, version)
    if trial.fault:
        supported = " or ".join(SUPPORTED)
        error = SessiondError(
            f"opencode {version} does not do what sessiond needs: {trial.fault}",
            hint=f"use opencode {supported}, or look for a newer sessiond",
        )
        return failed_by(check, error)
    text = f"started in {trial.boot_seconds:g} s, took {trial.replayed} events, loaded the plugin"
    if trial.live:
        return ok(check, text)
    return warning(
        check,
        f"{text}; its views do not move by themselves",
        f"use opencode {SUPPORTED[-1]} to see what others write as it is written",
    )


def _listed(paths: list[Path]) -> str:
    return ", ".join(str(path) for path in paths) or "there is none"
