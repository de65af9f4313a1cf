"""`sessiond doctor --scan`: damage in Redis, for people and for programs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from sessiond.client import DaemonClient
from sessiond.model import NewMessage, NewSession
from tests.cli.commands import ask, called, sessiond
from tests.daemons import RunningDaemon, running_daemon, wait_for


@pytest.fixture(scope="module")
def daemon() -> Iterator[RunningDaemon]:
    """A daemon with a healthy session and one whose log lacks an entry."""
    with running_daemon() as daemon:

        async def fill(client: DaemonClient) -> None:
            for name in ("ses_good", "ses_bad"):
                await client.create(NewSession(session_id=name))
                for content in ("one", "two"):
                    await client.append(name, [NewMessage(role="user", content=content)])

        ask(daemon, fill)
        with Redis(unix_socket_path=str(daemon.redis_socket)) as redis:
            redis.xdel("sessiond:{ses_bad}:conversation", "2-0")
        yield daemon


def mirrored(daemon: RunningDaemon, session_id: str, name: str = "metadata.json") -> Path:
    """Return where a file of a session is, once it is there."""
    path = daemon.folder / "sessiond/.opencode/sessions" / session_id / name
    wait_for(path.exists)
    return path


def rot(path: Path, right: bytes, wrong: bytes) -> None:
    """Change bytes of a file as a bad disk does: at no time. Only a scan notices that."""
    before, content = path.stat(), path.read_bytes()
    assert right in content
    path.write_bytes(content.replace(right, wrong))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_scan_names_what_is_wrong_and_what_to_do(daemon: RunningDaemon) -> None:
    done = called(daemon, "doctor", "--scan", code=12)
    assert "damaged  sessiond:{ses_bad}:conversation: entries 2 to 2 are missing" in done.stdout
    assert "→ sessiond repair ses_bad" in done.stdout
    assert done.stdout.endswith("2 sessions scanned, 1 found\n")


def test_a_scan_of_some_sessions_looks_at_these_alone(daemon: RunningDaemon) -> None:
    done = sessiond(daemon, "doctor", "--scan", "ses_good")
    assert (done.returncode, done.stdout) == (0, "1 session scanned, nothing found\n")
    called(daemon, "doctor", "--scan", "ses_none", code=8)
    called(daemon, "doctor", "--scan", "no/id", code=3)


def test_a_scan_tells_of_damaged_files_and_no_repair_of_redis_is_planned_for_them(
    daemon: RunningDaemon,
) -> None:
    path = mirrored(daemon, "ses_good")
    rot(path, b"ses_good", b"sas_good")
    done = called(daemon, "doctor", "--scan", "ses_good", code=12)
    assert f"damaged  {path}: its content changed though nobody wrote it\n" in done.stdout
    (kept,) = (path.parent.parent / ".quarantine").glob("ses_good.*")
    assert f"→ it is {kept} now, and is written anew" in done.stdout
    wait_for(path.exists)
    rot(path, b"ses_good", b"sas_good")
    told = json.loads(called(daemon, "doctor", "--scan", "--json", code=12).stdout)
    keys = [each["key"] for each in told["damage"] if each["session_id"] == "ses_good"]
    assert keys == [str(path)]
    wait_for(path.exists)
    assert "ses_good" not in called(daemon, "repair", "--all", code=12).stdout


def test_a_scan_tells_programs_the_same(daemon: RunningDaemon) -> None:
    told = json.loads(called(daemon, "doctor", "--scan", "--json", code=12).stdout)
    assert (told["ok"], told["sessions"]) == (False, 2)
    (damage,) = told["damage"]
    assert (damage["session_id"], damage["severity"]) == ("ses_bad", "damaged")


def test_who_loads_a_damaged_session_is_told_to_scan(daemon: RunningDaemon) -> None:
    done = called(daemon, "show", "ses_bad", code=12)
    assert "sessiond doctor --scan" in done.stderr
    sessiond(daemon, "show", "ses_good")


def test_a_repair_is_planned_first_and_done_when_it_is_said(daemon: RunningDaemon) -> None:
    done = called(daemon, "repair", "--all", code=12)
    assert done.stdout.startswith("ses_bad would be repaired\n")
    assert "again: operation 2 is in this machine's journal" in done.stdout
    assert done.stdout.endswith("nothing was changed; --apply does it\n")
    done = called(daemon, "repair", "ses_bad", "--apply", "--json", code=12)
    (plan,) = json.loads(done.stdout)["plans"]
    assert plan["applied"]
    assert called(daemon, "doctor", "--scan").stdout == "2 sessions scanned, nothing found\n"
    assert called(daemon, "repair", "--all").stdout == "there is nothing to repair\n"
    kept = sessiond(daemon, "redis", "cat", f"{plan['quarantine']}conversation").stdout
    assert "session.create" in kept
    wait_for(lambda: "one" in sessiond(daemon, "show", "ses_bad").stdout)


def test_the_doctor_looks_at_the_files_and_tells_what_it_moved_aside(
    daemon: RunningDaemon,
) -> None:
    path = mirrored(daemon, "ses_good", "context.json")
    aside = path.parent.parent / ".quarantine"
    kept = aside.rename(aside.with_name(".kept")) if aside.exists() else None
    aside.write_text("in the way", encoding="utf-8")
    rot(path, b"working", b"wurking")
    told = json.loads(called(daemon, "doctor", "--json", code=12).stdout)
    (finding,) = [each for each in told["findings"] if each["check"] == "files"]
    assert (finding["state"], finding["exit_code"]) == ("failed", 12)
    assert "ses_good: something is damaged, and cannot be moved aside" in finding["finding"]
    aside.unlink()
    if kept:
        kept.rename(aside)
    told = json.loads(called(daemon, "doctor", "--json").stdout)
    (finding,) = [each for each in told["findings"] if each["check"] == "files"]
    assert finding["state"] == "warning"
    assert "ses_good/context.json: its content changed though nobody wrote it" in finding["finding"]
    assert "check the disk" in finding["remedy"]
    wait_for(lambda: path.exists() and b"working" in path.read_bytes())


def test_a_repair_needs_sessions(daemon: RunningDaemon) -> None:
    assert "--all" in called(daemon, "repair", code=3).stderr
    called(daemon, "repair", "--all", "ses_bad", code=3)
    called(daemon, "repair", "ses_none", code=8)


def test_the_doctor_notices_a_damaged_session_by_itself(daemon: RunningDaemon) -> None:
    with Redis(unix_socket_path=str(daemon.redis_socket)) as redis:
        redis.hset("sessiond:{ses_good}:metadata", "title", "damaged")
        told = json.loads(called(daemon, "doctor", "--json", code=12).stdout)
        (finding,) = [each for each in told["findings"] if each["check"] == "sessions"]
        assert (finding["state"], finding["exit_code"]) == ("failed", 12)
        assert "1 of the 2 newest are damaged: ses_good" in finding["finding"]
        redis.set("sessiond:contested", "not ours")
        told = json.loads(called(daemon, "doctor", "--json", code=12).stdout)
        states = {each["check"]: each["state"] for each in told["findings"]}
        assert (states["redis"], states["conflicts"], states["round trip"]) == (
            *("ok", "failed"),
            "ok",
        )
        redis.delete("sessiond:contested")
    called(daemon, "repair", "--all", "--apply")
    assert json.loads(called(daemon, "doctor", "--json").stdout)["ok"]
