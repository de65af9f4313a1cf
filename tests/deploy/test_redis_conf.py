"""config/redis.conf on real servers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sessiond.service.health.checks import check_server
from sessiond.store.probe import ServerFacts
from tests.deploy import CONFIG, PASSWORDS, acl_file, binaries, login, redis_server, short_folder

TEXT = (CONFIG / "redis.conf").read_text()
SETTING = re.compile(r"^(?P<commented># )?(?P<name>[a-z][a-z-]+) (?P<value>\S.*)$", re.MULTILINE)


@pytest.fixture(name="folder")
def _folder() -> Iterator[Path]:
    with short_folder() as folder:
        yield folder


@pytest.mark.parametrize("binary", binaries())
def test_a_server_runs_with_the_settings_that_keep_sessions(binary: Path, folder: Path) -> None:
    with redis_server(binary, folder) as socket, login(socket) as redis:
        settings = redis.config_get("*")
        info = redis.info("memory")
    expected = {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "no-appendfsync-on-rewrite": "no",
        "aof-load-truncated": "yes",
        "save": "",
        "maxmemory-policy": "noeviction",
        "bind": "127.0.0.1 -::1",
        "protected-mode": "yes",
        "databases": "1",
        "lazyfree-lazy-user-del": "yes",
        "aclfile": "",
    }
    assert {name: settings[name] for name in expected} == expected
    assert "pubsub 33554432 8388608 60" in settings["client-output-buffer-limit"]
    policy = info["maxmemory_policy"]
    check_server(ServerFacts(version="redis 7.0.0", policy=policy, memory_limit=1))


@pytest.mark.parametrize("binary", binaries())
def test_what_was_written_is_there_after_the_server_was_restarted(
    binary: Path, folder: Path
) -> None:
    with redis_server(binary, folder) as socket, login(socket) as redis:
        redis.hset("sessiond:{s}:metadata", "title", "kept")
    with redis_server(binary, folder) as socket, login(socket) as redis:
        assert redis.hgetall("sessiond:{s}:metadata") == {"title": "kept"}


@pytest.mark.parametrize("binary", binaries())
def test_the_settings_in_comments_are_real_ones(binary: Path, folder: Path) -> None:
    """Those an operator may uncomment; what is of the machine gets values of ours."""
    ours = {"aclfile": str(acl_file(folder)), "unixsocket": str(folder / "redis.sock")}
    ours |= {"port": "0", "unixsocketperm": "700"}
    with redis_server(binary, folder) as socket, login(socket) as redis:
        known = redis.config_get("*").keys()
    tls = set(re.findall(r"^# (tls-[a-z-]+) ", TEXT, re.MULTILINE))
    assert len(tls) == 6
    assert tls <= known or not any(name.startswith("tls-") for name in known)  # built without
    wanted = {
        found["name"]: ours.get(found["name"], found["value"])
        for found in SETTING.finditer(TEXT)
        if found["commented"] and found["name"] in known and not found["name"].startswith("tls-")
    }
    expected = {"aclfile", "maxmemory", "min-replicas-to-write", "min-replicas-max-lag"}
    assert wanted.keys() >= expected | ours.keys()
    arguments = [word for name, value in wanted.items() for word in (f"--{name}", value)]
    with (
        redis_server(binary, folder, *arguments, user="admin") as socket,
        login(socket, "admin") as redis,
    ):
        settings = redis.config_get("*")
        assert settings["maxmemory"] == str(2 * 1024**3)
        assert settings["min-replicas-to-write"] == "1"
        assert PASSWORDS["admin"] not in str(redis.acl_list())


def test_no_setting_stands_twice() -> None:
    active = [found["name"] for found in SETTING.finditer(TEXT) if not found["commented"]]
    assert len(active) > 10
    assert len(active) == len(set(active))
