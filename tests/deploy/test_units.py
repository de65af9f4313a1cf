"""The files in deploy/: they say what sessiond understands, and start it as they promise."""

from __future__ import annotations

import json
import os
import plistlib
import re
import shlex
import shutil
import signal
import socket
import subprocess
import tomllib
from collections.abc import Iterator
from configparser import ConfigParser
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from sessiond import config
from sessiond.cli.exits import exit_code
from sessiond.cli.main import parser
from sessiond.cli.run import _run
from sessiond.cli.status import _status
from sessiond.client import DaemonClient
from sessiond.config.load import from_environment
from sessiond.daemon import sockets
from sessiond.errors import ConfigurationError, FolderHeld, StoreUnavailable
from sessiond.model import NewSession
from sessiond.store.embedded.binaries import shipped_binary
from sessiond.store.embedded.probe import is_listening
from tests.deploy import (
    DEPLOY,
    ROOT,
    daemon_environment,
    linux_only,
    running,
    sessiond,
    short_folder,
    until,
)

UNIT = DEPLOY / "systemd" / "sessiond.service"
PLIST = DEPLOY / "launchd" / "sessiond.plist"
COMPOSE = DEPLOY / "compose.yaml"
DOCKERFILE = DEPLOY / "Dockerfile"
SIDECAR = DEPLOY / "kubernetes" / "sidecar.yaml"
REDIS_CLI = shutil.which("redis-cli")
LOADED_PATIENCE_SECONDS = 30


@pytest.fixture(name="folder")
def _folder() -> Iterator[Path]:
    with short_folder() as folder:
        yield folder


def understood(words: list[str]) -> Any:
    """What sessiond would do with these arguments."""
    return parser().parse_args(words).command


# systemd


def unit() -> ConfigParser:
    found = ConfigParser(strict=False, interpolation=None)
    found.optionxform = str  # type: ignore[assignment,method-assign]
    found.read_string(UNIT.read_text())
    return found


def unit_command() -> list[str]:
    program, *words = shlex.split(unit()["Service"]["ExecStart"])
    assert program == "%h/.local/bin/sessiond"
    return words


def test_the_unit_starts_the_daemon() -> None:
    assert understood(unit_command()) == _run
    service = unit()["Service"]
    assert service["Type"] == "notify"
    assert service["KillMode"] == "mixed"
    assert service["Restart"] == "on-failure"
    assert service["RuntimeDirectory"] == "sessiond"  # as sessiond.paths.runtime_folder has it
    assert unit()["Install"]["WantedBy"] == "default.target"


def test_the_unit_tries_again_unless_only_a_person_can_help() -> None:
    final = {int(code) for code in unit()["Service"]["RestartPreventExitStatus"].split()}
    assert {exit_code(ConfigurationError("")), exit_code(FolderHeld(""))} <= final
    assert exit_code(StoreUnavailable("")) not in final


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_finds_no_fault_in_the_unit(folder: Path) -> None:
    program(folder / ".local" / "bin" / "sessiond", "exit 0")
    verdict = subprocess.run(
        ["systemd-analyze", "verify", "--user", "--man=no", UNIT],
        env=daemon_environment(folder) | {"XDG_RUNTIME_DIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (verdict.returncode, verdict.stdout + verdict.stderr) == (0, "")


@linux_only
@pytest.mark.parametrize("abstract", [False, True], ids=["file", "abstract"])
def test_the_daemon_tells_systemd_when_it_serves_and_when_it_stops(
    folder: Path, *, abstract: bool
) -> None:
    """As the unit starts it: without a configuration, with a server of its own."""
    name = f"@{folder.name}" if abstract else str(folder / "notify")
    variables = daemon_environment(folder) | {"NOTIFY_SOCKET": name}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0"))
        manager.settimeout(LOADED_PATIENCE_SECONDS)
        command = sessiond(*unit_command())
        with running(command, log=folder / "sessiond.log", env=variables) as daemon:
            assert manager.recv(100) == b"READY=1"
            assert is_listening(folder / "run" / "sessiond" / "api.sock")
            daemon.send_signal(signal.SIGTERM)
            assert manager.recv(100) == b"STOPPING=1"
            assert daemon.wait(timeout=LOADED_PATIENCE_SECONDS) == 0
        manager.settimeout(0)
        with pytest.raises(BlockingIOError):
            manager.recv(100)
    assert not list((folder / "run" / "sessiond").glob("*.sock"))


# launchd


def test_the_plist_starts_the_daemon_and_brings_it_back_after_a_failure() -> None:
    plist = plistlib.loads(PLIST.read_bytes())
    shell, option, line = plist["ProgramArguments"]
    assert (shell, option) == ("/bin/sh", "-c")
    run, program, *words = shlex.split(line.partition("2>>")[0])
    assert (run, program) == ("exec", "$HOME/.local/bin/sessiond")
    assert understood(words) == _run
    assert plist["KeepAlive"] == {"SuccessfulExit": False}
    assert plist["RunAtLoad"] is True
    assert plist["Umask"] == 0o077
    assert plist["ExitTimeOut"] >= int(unit()["Service"]["TimeoutStopSec"])
    assert plist["Label"] == PLIST.stem


@linux_only
def test_the_plists_line_runs_the_program_of_the_users_home(folder: Path) -> None:
    program(folder / ".local" / "bin" / "sessiond", 'echo "$@" >&2')
    (folder / "Library" / "Logs").mkdir(parents=True)
    arguments = plistlib.loads(PLIST.read_bytes())["ProgramArguments"]
    subprocess.run(arguments, env={"HOME": str(folder)}, check=True)
    assert (folder / "Library" / "Logs" / "sessiond.log").read_text() == "run\n"


# Containers


def instructions() -> dict[str, list[str]]:
    """The Dockerfile's instructions by name."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    found: dict[str, list[str]] = {}
    for line in text.replace("\\\n", " ").splitlines():
        name, _, rest = line.partition(" ")
        if name:
            found.setdefault(name, []).append(rest)
    return found


def test_the_image_holds_what_its_build_needs_and_runs_the_daemon_without_root() -> None:
    found = instructions()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    promised = {project["readme"], *project["license-files"]}
    copied = [source for line in found["COPY"] for source in line.split()[:-1]]
    sources = [source for source in copied if not source.startswith(("--from", "/"))]
    assert promised <= set(sources)
    for source in {*sources} - promised:
        assert (ROOT / source).exists()
    (start,) = found["CMD"]
    assert json.loads(start)[0] == "sessiond"
    assert understood(json.loads(start)[1:]) == _run
    (health,) = found["HEALTHCHECK"]
    assert understood(json.loads(health.partition("CMD ")[2])[1:]) == _status
    assert found["USER"][-1] == "1000:1000"


class Compose:
    """compose.yaml with its variables filled in, its places moved below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.host = folder / "host"
        self.binaries = folder / "bin"
        self._values = {"HOST_UID": "1000", "HOST_GID": "1000", "HOST_FOLDER": str(self.host)}
        self.document: dict[str, Any] = yaml.safe_load(self._filled_in(COMPOSE.read_text()))
        self.services: dict[str, dict[str, Any]] = self.document["services"]

    def _filled_in(self, text: str) -> str:
        def value(found: re.Match[str]) -> str:
            name, default = found["name"], found["default"]
            return self._values[name] if default is None else self._values.get(name, default)

        variable = r"(?<!\$)\$\{(?P<name>[A-Z_]+)(?::-(?P<default>[^}]*)|:\?[^}]+)\}"
        return re.sub(variable, value, text).replace("$$", "$")

    def mounts(self, service: str) -> dict[str, str]:
        """Where a container's folders and files really are."""
        mounts = {mount["target"]: mount["source"] for mount in self.services[service]["volumes"]}
        for name in self.services[service]["secrets"]:
            mounts[f"/run/secrets/{name}"] = self.document["secrets"][name]["file"]
        return {
            target: str((DEPLOY / source).resolve()) for target, source in sorted(mounts.items())
        }

    def outside(self, service: str, words: list[str]) -> list[str]:
        """A command of a container, with the places of the host in it."""
        mounts = self.mounts(service) | {"/run/secrets": str(self.host / "secrets")}
        for target in sorted(mounts, key=len, reverse=True):
            words = [word.replace(target, mounts[target]) for word in words]
        return words

    def environment(self, service: str) -> dict[str, str]:
        given: dict[str, str] = self.services[service].get("environment", {})
        path = f"{self.binaries}:{os.environ['PATH']}"
        words = self.outside(service, list(given.values()))
        return {"PATH": path, "HOME": "/none", **dict(zip(given, words, strict=True))}

    def healthy(self, service: str) -> bool:
        kind, *words = self.services[service]["healthcheck"]["test"]
        if kind == "CMD-SHELL":
            words = ["/bin/sh", "-c", *words]
        check = subprocess.run(
            self.outside(service, words),
            env=self.environment(service),
            capture_output=True,
            check=False,
        )
        return check.returncode == 0

    @contextmanager
    def running(self, service: str) -> Iterator[subprocess.Popen[bytes]]:
        command = self.outside(service, self.services[service]["command"])
        log = self.folder / f"{service}.log"
        with running(command, log=log, env=self.environment(service)) as process:
            until(
                lambda: process.poll() is not None or self.healthy(service),
                within_s=LOADED_PATIENCE_SECONDS,
            )
            assert process.poll() is None, log.read_text()
            yield process


@pytest.fixture(name="compose")
def _compose(folder: Path) -> Compose:
    """As the README has it prepared, and with the programs that the images have."""
    compose = Compose(folder)
    for name in ("data", "redis", "run", "secrets"):
        (compose.host / name).mkdir(mode=0o700, parents=True)
    for name in ("redis-sessiond", "redis-inspector"):
        (compose.host / "secrets" / name).write_text(f"{name}-password\n")
    program(compose.binaries / "sessiond", f'exec {shlex.join(sessiond())} "$@"')
    program(compose.binaries / "valkey-server", f'exec {shipped_binary()} "$@"')
    program(compose.binaries / "valkey-cli", f'exec {REDIS_CLI} "$@"')
    return compose


def test_compose_mounts_files_that_are_there_and_sets_options_that_are_options(
    compose: Compose,
) -> None:
    for name, service in compose.services.items():
        for source in compose.mounts(name).values():
            assert Path(source).exists(), source
        assert service["user"] == "1000:1000"
        assert service["network_mode"] == "none"
        from_environment(service.get("environment", {}))
    build = compose.services["sessiond"]["build"]
    assert (DEPLOY / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).resolve() == DOCKERFILE
    (health,) = instructions()["HEALTHCHECK"]
    assert compose.services["sessiond"]["healthcheck"]["test"][1:] == json.loads(
        health.partition("CMD ")[2]
    )


@linux_only
@pytest.mark.skipif(not (REDIS_CLI and shipped_binary()), reason="redis-cli or valkey is missing")
async def test_composes_commands_make_a_daemon_that_the_host_reaches(compose: Compose) -> None:
    with compose.running("redis"), compose.running("sessiond"):
        client = DaemonClient(socket=str(compose.host / "run" / "api.sock"))
        try:
            created = await client.create(NewSession(title="in a container"))
            assert (await client.load(created.metadata.session_id)).metadata.title
        finally:
            await client.close()
    assert "in a container" in "".join(
        path.read_text("latin-1") for path in (compose.host / "data").rglob("*.aof")
    )


@linux_only
@pytest.mark.skipif(shipped_binary() is None, reason="valkey is missing")
@pytest.mark.parametrize("content", [None, "", "\n"], ids=["missing", "empty", "blank"])
def test_composes_redis_does_not_start_without_a_password(
    compose: Compose, content: str | None
) -> None:
    secret = compose.host / "secrets" / "redis-inspector"
    secret.unlink()
    if content is not None:
        secret.write_text(content)
    ended = subprocess.run(
        compose.outside("redis", compose.services["redis"]["command"]),
        env=compose.environment("redis"),
        capture_output=True,
        timeout=10,
        check=False,
    )
    assert ended.returncode != 0
    assert not (compose.host / "redis" / "users.acl").exists()


# Kubernetes


def pod() -> dict[str, Any]:
    secret, found = yaml.safe_load_all(SIDECAR.read_text())
    assert secret["stringData"].keys() == {"url"}
    specification: dict[str, Any] = found["spec"]
    return specification


def test_the_sidecar_runs_the_daemon_with_options_that_are_options() -> None:
    _, sidecar = pod()["initContainers"]
    assert sidecar["restartPolicy"] == "Always"
    assert understood(sidecar["command"][1:]) == _run
    for probe in ("startupProbe", "readinessProbe"):
        assert understood(sidecar[probe]["exec"]["command"][1:]) == _status
    assert "livenessProbe" not in sidecar
    secret, _ = yaml.safe_load_all(SIDECAR.read_text())
    variables = {
        row["name"]: row.get("value", secret["stringData"]["url"]) for row in sidecar["env"]
    }
    assert from_environment(variables).keys() == {"redis.url", "api.socket"}
    config.load(file=None, environ=variables, flags={})


def test_the_agent_finds_the_daemon_at_the_same_socket_as_the_same_user() -> None:
    specification = pod()
    sticky, sidecar = specification["initContainers"]
    (agent,) = specification["containers"]
    (volume,) = specification["volumes"]
    path = {row["name"]: row.get("value") for row in sidecar["env"]}["SESSIOND_API_SOCKET"]
    assert {row["name"]: row["value"] for row in agent["env"]} == {"SESSIOND_API_SOCKET": path}
    (mount,) = sidecar["volumeMounts"]
    assert agent["volumeMounts"] == sticky["volumeMounts"] == [mount]
    assert mount["name"] == volume["name"]
    assert Path(path).parents[1] == Path(mount["mountPath"]) == Path(sticky["command"][-1])
    assert "runAsUser" not in sidecar["securityContext"]
    assert "securityContext" not in agent


def test_a_service_named_sessiond_would_stop_the_daemon_without_the_pods_setting() -> None:
    assert pod()["enableServiceLinks"] is False
    with pytest.raises(ConfigurationError):
        from_environment({"SESSIOND_PORT": "tcp://10.0.0.1:80"})


@pytest.mark.parametrize("mode", [0o777, 0o2777])
def test_an_empty_dir_can_hold_the_socket_only_with_the_sticky_bit(folder: Path, mode: int) -> None:
    volume = folder / "volume"
    volume.mkdir()
    volume.chmod(mode)
    path = volume / "own" / "api.sock"
    with pytest.raises(ConfigurationError, match="writable by others"):
        sockets.bind_unix(path)
    sticky = int(pod()["initContainers"][0]["command"][1], 8)
    volume.chmod(sticky)
    sockets.bind_unix(path).close()


def program(path: Path, line: str) -> None:
    """A program of one line of shell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o700)
