"""`sessiond opencode …` as people use it, with a daemon and without opencode itself."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sessiond.cli import main
from sessiond.cli.opencode.sharing import turn_of, workspace_of
from sessiond.client import DaemonClient
from sessiond.opencode.installed import PLUGIN, RECORD, SETTINGS, TWIN, packaged
from sessiond.opencode.locate import SUPPORTED, database_path
from sessiond.opencode.protocol import Attachment
from sessiond.service.opencode.overview import OpencodeStatus
from tests.cli.commands import EVIL, called, controls
from tests.daemons import RunningDaemon, running_daemon, wait_for
from tests.opencode.tables import add_session, make_database

COMMANDS = ("", "install", "uninstall", "status", "import", "share", "unshare", "doctor")
NEW, OLD = "ses_new", "ses_old"
PROJECT = "65ec0f65eb6fc472fbacd7ce8f2f0123456789ab"
YEAR_MS = 365 * 86_400_000


@pytest.fixture
def place(tmp_path: Path) -> RunningDaemon:
    """A person's home with an opencode that only tells its version, and no daemon."""
    place = RunningDaemon(tmp_path / "home")
    give_opencode(place)
    return place


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that commands are run in."""
    project = tmp_path / "project"
    (project / ".git").mkdir(parents=True)
    monkeypatch.chdir(project)
    return project


def give_opencode(place: RunningDaemon, version: str = SUPPORTED[0]) -> None:
    programs = place.folder / "bin"
    programs.mkdir(parents=True, exist_ok=True)
    opencode = programs / "opencode"
    opencode.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo {version} && exit 0\necho broken\nexit 1\n',
        encoding="utf-8",
    )
    opencode.chmod(0o755)
    place.environ |= {"PATH": f"{programs}:/usr/bin:/bin"}


class Plugin:
    """Attaches to a daemon as the plugin does, and listens for its commands."""

    def __init__(self, daemon: RunningDaemon, database: Path) -> None:
        self._daemon = daemon
        self._attachment = Attachment(
            version=SUPPORTED[0],
            plugin="0",
            pid=1,
            database=str(database),
            project_id=PROJECT,
            directory=f"/home/dev/{EVIL}",
            worktree="/home/dev",
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)
        self._listening: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(lambda: self._listening and self._listening.cancel())
        self._thread.join(timeout=30)

    def _run(self) -> None:
        self._listening = self._loop.create_task(self._listen())
        self._loop.run_until_complete(asyncio.wait([self._listening]))
        self._loop.close()

    async def _listen(self) -> None:
        client = DaemonClient(socket=str(self._daemon.socket))
        path = "/v1/opencode/instances/oc-test"
        try:
            await client.call("PUT", path, None, body=self._attachment)
            async for _ in client.stream(f"{path}/commands", ""):
                pass
        finally:
            await client.close()


@pytest.fixture(scope="module")
def daemon() -> Iterator[RunningDaemon]:
    """A daemon with an opencode attached, whose database has a new session and an older one."""
    folder = Path(tempfile.mkdtemp(prefix="sdo-", dir="/tmp"))
    with running_daemon("--instance", "laptop", "--port", "0") as daemon:
        database = make_database(folder / "opencode.db")
        now_ms = round(time.time() * 1000)
        add_session(database, NEW, PROJECT, now_ms + YEAR_MS, title=f"{EVIL}new")
        add_session(database, OLD, PROJECT, now_ms - YEAR_MS, title="old")
        give_opencode(daemon)
        plugin = Plugin(daemon, database)
        plugin.start()
        wait_for(lambda: overview(daemon)["instances"] and len(overview(daemon)["sessions"]) == 2)
        yield daemon
        plugin.stop()
    shutil.rmtree(folder)


def overview(daemon: RunningDaemon) -> Any:
    return json.loads(called(daemon, "opencode", "status", "--json").stdout)


def state_of(daemon: RunningDaemon, session: str) -> str:
    (found,) = (one for one in overview(daemon)["sessions"] if one["session_id"] == session)
    return str(found["state"])


def configuration(place: RunningDaemon) -> Path:
    return Path(place.environ["XDG_CONFIG_HOME"]) / "opencode"


def checks(place: RunningDaemon, *arguments: str, code: int, **environ: str) -> dict[str, Any]:
    """What the doctor finds, by check."""
    done = called(place, "opencode", "doctor", "--json", *arguments, code=code, **environ)
    told = json.loads(done.stdout)
    assert told["ok"] is (code == 0)
    for finding in told["findings"]:
        wanting = finding["state"] in ("warning", "failed")
        assert bool(finding["remedy"]) is wanting, finding
    return {finding["check"]: finding for finding in told["findings"]}


# install, uninstall


def test_install_says_what_it_did_and_what_comes_next(place: RunningDaemon) -> None:
    shown = called(place, "opencode", "install").stdout
    assert f"created        {configuration(place) / PLUGIN}" in shown
    assert "sessiond run" in shown
    assert not controls(shown)
    again = called(place, "opencode", "install").stdout
    assert "created" not in again
    assert "replaced" not in again
    assert "removed" in called(place, "opencode", "uninstall").stdout
    assert not configuration(place).exists()
    assert "Nothing of sessiond's" in called(place, "opencode", "uninstall").stdout


def test_programs_read_what_was_done(place: RunningDaemon) -> None:
    told = json.loads(called(place, "opencode", "install", "--json", "--dry-run").stdout)
    assert told["changed"]
    assert told["dry_run"]
    assert told["opencode"] == SUPPORTED[0]
    assert told["folder"] == str(configuration(place))
    assert {"action": "create", "path": str(configuration(place) / PLUGIN), "reason": ""} in told[
        "steps"
    ]
    assert not configuration(place).exists()
    assert not json.loads(called(place, "opencode", "uninstall", "--json").stdout)["changed"]


def test_a_projects_plugin_lies_in_its_worktree(
    place: RunningDaemon, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "deep").mkdir()
    monkeypatch.chdir(project / "deep")
    shown = called(place, "opencode", "install", "--project").stdout
    assert (project / ".opencode" / PLUGIN).read_bytes() == packaged()
    assert not configuration(place).exists()
    assert f"waits over a minute for {configuration(place)}" in shown
    doubled = called(place, "opencode", "install").stdout
    assert "opencode loads both" in doubled
    called(place, "opencode", "uninstall")
    called(place, "opencode", "uninstall", "--project")
    assert [path.name for path in project.iterdir() if path.name != ".git"] == ["deep"]


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ([], None),
        (["--mode", "lease", "--share", "on"], None),
        (["--mode", "atomic", "--share-key", "us"], {"mode": "atomic", "share_key": "us"}),
        (["--share", "off"], {"share": "off"}),
        (["--socket", "/run/x.sock"], {"socket": "/run/x.sock"}),
        (
            ["--url", "http://127.0.0.1:7", "--token-file", "/run/token"],
            {"url": "http://127.0.0.1:7", "token_file": "/run/token"},
        ),
    ],
)
def test_only_settings_that_differ_are_written(
    place: RunningDaemon, arguments: list[str], settings: dict[str, str] | None
) -> None:
    shown = called(place, "opencode", "install", *arguments).stdout
    assert ("Sharing is off" in shown) is ("off" in arguments)
    file = configuration(place) / SETTINGS
    assert (json.loads(file.read_bytes()) if file.exists() else None) == settings
    called(place, "opencode", "install")
    assert (json.loads(file.read_bytes()) if file.exists() else None) == settings


def test_the_daemons_configured_socket_and_token_reach_the_plugin(place: RunningDaemon) -> None:
    file = place.folder / "sessions.yaml"
    file.write_text("api:\n  socket: /run/own.sock\n", encoding="utf-8")
    called(place, "opencode", "install", "--config", str(file))
    settings = configuration(place) / SETTINGS
    assert json.loads(settings.read_bytes()) == {"socket": "/run/own.sock"}
    url = "http://127.0.0.1:7"
    called(place, "opencode", "install", "--config", str(file), "--url", url)
    assert json.loads(settings.read_bytes()) == {"url": url, "token_file": "/run/api.token"}


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["--url", "http://example.org:1"], 3, "127.0.0.1"),
        (["--url", "http://127.0.0.1:1", "--socket", "/x"], 3, "choose one"),
        (["--token-file", "/x"], 3, "--url"),
        (["--share-key", "two words"], 3, "share key"),
        (["--opencode", "/nowhere/opencode"], 3, "/nowhere/opencode"),
        (["--opencode", "/bin/false"], 4, "--opencode"),
        (["--config", "/nowhere.yaml"], 4, "/nowhere.yaml"),
    ],
)
def test_what_install_cannot_use_has_a_code_and_changes_nothing(
    place: RunningDaemon, arguments: list[str], code: int, word: str
) -> None:
    assert word in called(place, "opencode", "install", *arguments, code=code).stderr
    assert not configuration(place).exists()


def test_a_folder_that_is_no_project_gets_no_projects_plugin(
    place: RunningDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loose = tmp_path / "loose"
    loose.mkdir()
    monkeypatch.chdir(loose)
    refused = called(place, "opencode", "install", "--project", code=3).stderr
    assert "in no git repository" in refused
    assert "--share-key" in refused
    assert not list(loose.iterdir())
    called(place, "opencode", "install", "--project", "--share-key", "us")
    called(place, "opencode", "install", "--project")  # the key stays
    assert (loose / ".opencode" / PLUGIN).exists()
    monkeypatch.chdir("/")
    assert "/ is no project" in called(place, "opencode", "install", "--project", code=3).stderr


def test_uninstalling_keeps_the_notes_that_keep_sessions_private(place: RunningDaemon) -> None:
    called(place, "opencode", "install")
    notes = database_path(place.environ).with_name("opencode.db.sessiond")
    notes.parent.mkdir(parents=True, exist_ok=True)
    notes.write_text("deleted ses_1\nprivate ses_2\n", encoding="utf-8")
    assert "which sessions are private" in called(place, "opencode", "uninstall").stdout
    assert "private ses_2" in notes.read_text(encoding="utf-8")
    notes.write_text("deleted ses_1\n", encoding="utf-8")
    called(place, "opencode", "uninstall")
    assert not notes.exists()


def test_a_plugin_that_was_changed_is_a_conflict(place: RunningDaemon) -> None:
    called(place, "opencode", "install")
    (configuration(place) / PLUGIN).write_text("// mine", encoding="utf-8")
    assert "--force" in called(place, "opencode", "install", code=9).stderr
    called(place, "opencode", "install", "--force")
    assert (configuration(place) / PLUGIN).read_bytes() == packaged()


def test_another_version_is_called_untested(place: RunningDaemon) -> None:
    give_opencode(place, "9.9.9")
    shown = called(place, "opencode", "install").stdout
    assert "opencode 9.9.9 is not tested" in shown
    assert "doctor" in shown


@pytest.mark.parametrize("arguments", [["--global", "--project"], ["--mode", "naive"]])
def test_wrong_use_is_told_by_the_parser(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["opencode", "install", *arguments])
    assert ended.value.code == 2


# status, import, share, unshare


def test_status_shows_who_is_attached(daemon: RunningDaemon) -> None:
    shown = called(daemon, "opencode", "status").stdout
    assert not controls(shown)
    headings, row = (line.split() for line in shown.splitlines()[:2])
    told = dict(zip(headings, row, strict=False))
    assert told["INSTANCE"] == "oc-test"
    assert told["MACHINE"] == "laptop"
    assert told["VERSION"] == SUPPORTED[0]
    assert told["MODE"] == "lease"
    assert told["WORKSPACE"] == PROJECT[:12]
    assert told["TURN"] == "idle"
    assert told["LIVE"] == "yes"
    line = next(
        line
        for line in called(daemon, "status").stdout.splitlines()
        if line.startswith("opencode ")
    )
    assert f"{SUPPORTED[0]} on laptop" in line


def test_sessions_are_shared_and_kept_private_one_by_one(daemon: RunningDaemon) -> None:
    shown = called(daemon, "opencode", "status", "--sessions").stdout
    assert not controls(shown)
    assert f"{OLD}  older" in shown
    assert f"{NEW}  shared" in shown
    assert "sessiond opencode import" in shown

    assert "private" in called(daemon, "opencode", "unshare", NEW).stdout
    assert state_of(daemon, NEW) == "private"
    told = json.loads(called(daemon, "opencode", "share", NEW, "--json").stdout)
    assert told == {"session_id": NEW, "shared": True}
    assert state_of(daemon, NEW) == "shared"

    assert "2 sessions" in called(daemon, "opencode", "import").stdout
    assert state_of(daemon, OLD) == "shared"
    assert json.loads(called(daemon, "opencode", "import", "--json").stdout) == {"sessions": 2}
    assert "import" not in called(daemon, "opencode", "status", "--sessions").stdout


@pytest.mark.parametrize("session", ["ses_nowhere", "no/../such", "?"])
def test_a_session_that_is_nowhere_is_not_found_or_no_name(
    daemon: RunningDaemon, session: str
) -> None:
    code = 8 if session == "ses_nowhere" else 3
    assert "error:" in called(daemon, "opencode", "unshare", session, code=code).stderr


def test_without_an_opencode_status_says_what_to_do() -> None:
    with running_daemon() as lonely:
        done = called(lonely, "opencode", "status")
        assert done.stdout == ""
        assert "doctor" in done.stderr
        assert "start opencode once" in called(lonely, "opencode", "import").stdout


@pytest.mark.parametrize("command", [["status"], ["import"], ["share", "ses_a"]])
def test_without_a_daemon_there_is_a_code_for_it(place: RunningDaemon, command: list[str]) -> None:
    assert "sessiond run" in called(place, "opencode", *command, code=7).stderr


def test_words_for_turns_and_workspaces() -> None:
    status = OpencodeStatus(
        instance="a",
        machine="b",
        version="1",
        pid=1,
        mode="lease",
        live=True,
        workspace="",
        directory="/",
        sessions=0,
        turns=["ses_a"],
        lag=0,
        seen_ms=0,
    )
    assert turn_of(status) == "answering…"
    status.turns = ["ses_a", "ses_b"]
    assert turn_of(status) == "answering… (2)"
    assert workspace_of("our-team") == "our-team"
    assert workspace_of(PROJECT) == PROJECT[:12]


# doctor


def test_the_doctor_finds_nothing_wrong_where_all_is_well(daemon: RunningDaemon) -> None:
    called(daemon, "opencode", "install")
    data = Path(daemon.environ["XDG_DATA_HOME"]) / "opencode"
    data.mkdir(exist_ok=True)
    make_database(data / "opencode.db")
    found = checks(daemon, "--quick", code=0)
    expected = dict.fromkeys(found, "ok") | {"trial": "skipped"}
    assert {name: finding["state"] for name, finding in found.items()} == expected
    assert found.keys() >= {"opencode", "plugin", "settings", "daemon", "attached", "clock"}
    shown = called(daemon, "opencode", "doctor", "--quick").stdout
    assert "Sessions can be shared." in shown
    assert not controls(shown)
    called(daemon, "opencode", "uninstall")


def test_the_doctor_ends_with_the_code_of_the_first_failure(place: RunningDaemon) -> None:
    found = checks(place, "--quick", code=4)
    assert found["plugin"]["state"] == "failed"
    assert "sessiond opencode install" in found["plugin"]["remedy"]
    assert found["daemon"]["exit_code"] == 7
    called(place, "opencode", "install")
    assert checks(place, "--quick", code=7)["plugin"]["state"] == "ok"
    place.environ["PATH"] = "/nowhere"
    assert "--opencode" in checks(place, code=8)["opencode"]["remedy"]


def test_the_doctor_tries_opencode_out_and_says_what_it_said(place: RunningDaemon) -> None:
    found = checks(place, code=4)
    assert found["trial"]["state"] == "failed"
    assert "broken" in found["trial"]["finding"]


def test_the_doctor_names_what_is_wrong_with_the_plugin(
    place: RunningDaemon, project: Path
) -> None:
    called(place, "opencode", "install")
    folder = configuration(place)
    (folder / PLUGIN).write_text("// older", encoding="utf-8")
    assert "not the plugin of this" in checks(place, "--quick", code=4)["plugin"]["finding"]
    called(place, "opencode", "install", "--force")
    (folder / TWIN).parent.mkdir()
    (folder / TWIN).write_bytes(packaged())
    assert str(folder / TWIN) in checks(place, "--quick", code=4)["plugin"]["finding"]


def test_the_doctor_checks_settings_as_the_plugin_takes_them(place: RunningDaemon) -> None:
    called(place, "opencode", "install", "--mode", "defer", "--share-key", "us")
    found = checks(place, "--quick", code=7)["settings"]
    assert "defer" in found["finding"]
    assert "us" in found["finding"]
    off = checks(place, "--quick", code=7, SESSIOND_SHARE="off")["settings"]
    assert off["state"] == "warning"
    (configuration(place) / SETTINGS).write_text('{"mode": "naive"}', encoding="utf-8")
    found = checks(place, "--quick", code=4)
    assert "sessiond.json" in found["settings"]["finding"]
    assert found["daemon"]["state"] == "skipped"


def test_the_doctor_asks_the_daemon_that_the_plugin_asks(
    daemon: RunningDaemon, place: RunningDaemon
) -> None:
    status = json.loads(called(daemon, "status", "--json").stdout)
    place.environ["SESSIOND_SOCKET"] = "/nowhere.sock"
    called(place, "opencode", "install", "--socket", str(daemon.socket))
    assert "/nowhere.sock" in checks(place, "--quick", code=7)["daemon"]["finding"]
    del place.environ["SESSIOND_SOCKET"]
    assert checks(place, "--quick", code=0)["daemon"]["state"] == "ok"
    token = ["--token-file", status["token_file"]]
    called(place, "opencode", "install", "--url", status["address"], *token)
    assert checks(place, "--quick", code=0)["daemon"]["state"] == "ok"
    checks(place, "--quick", code=10, SESSIOND_TOKEN="wrong")  # noqa: S106 - to see it refused
    token = ["--token-file", "/nowhere/token"]
    called(place, "opencode", "install", "--url", status["address"], *token)
    assert "token" in checks(place, "--quick", code=4)["daemon"]["finding"]


def test_the_doctor_warns_of_a_wait_without_network_and_of_what_the_seed_hides(
    place: RunningDaemon, project: Path
) -> None:
    called(place, "opencode", "install")
    (project / ".opencode").mkdir()
    found = checks(place, "--quick", code=7)["start offline"]
    assert str(project / ".opencode") in found["finding"]
    tool = configuration(place) / "tool" / "mine.ts"
    tool.parent.mkdir()
    tool.write_text('import { tool } from "@opencode-ai/plugin"', encoding="utf-8")
    found = checks(place, "--quick", code=7)["start offline"]
    assert str(tool) in found["finding"]
    assert "install" in found["remedy"]


def test_the_doctor_tells_a_damaged_database_and_a_damaged_record(place: RunningDaemon) -> None:
    called(place, "opencode", "install")
    assert checks(place, "--quick", code=7)["database"]["state"] == "warning"
    data = Path(place.environ["XDG_DATA_HOME"]) / "opencode"
    data.mkdir(exist_ok=True)
    (data / "opencode.db").write_text("no database at all, really", encoding="utf-8")
    assert checks(place, "--quick", code=7)["database"]["state"] == "failed"
    (configuration(place) / RECORD).write_text("{", encoding="utf-8")
    assert checks(place, "--quick", code=4)["start offline"]["state"] == "failed"


# Help


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["opencode", *name.split(), "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: sessiond opencode {name}".strip() in shown
    for other in COMMANDS[1:] if not name else ():
        assert re.search(rf"^ +{other}\s", shown, re.MULTILINE)


def test_the_plugins_own_variables_do_not_disturb_the_commands(place: RunningDaemon) -> None:
    names = set(re.findall(r"\bSESSIOND_[A-Z_]+", packaged().decode())) - {"SESSIOND_API_SOCKET"}
    assert "SESSIOND_SHARE" in names
    place.environ |= dict.fromkeys(names, "off")
    called(place, "config", "get")
