"""Who may speak to the API: sockets, folders, hosts, origins and tokens, on every route."""

from __future__ import annotations

import hmac
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

from sessiond.api.guard import Guard, Peer
from sessiond.api.routes import Route
from sessiond.daemon.sockets import bind_unix, token
from sessiond.errors import ConfigurationError, Unauthenticated
from tests.api.client import ROUTES, Client, filled, name_of
from tests.api.wire import Address, Answer, assert_problem, connected, exchange, request_bytes
from tests.daemons import RunningDaemon, running_daemon

NOBODY = 65534
PAGE = "https://evil.example"
every_route = pytest.mark.parametrize("route", ROUTES, ids=name_of)


class Door:
    """A daemon's two addresses, and its token."""

    def __init__(self, daemon: RunningDaemon) -> None:
        status = exchange(daemon.socket, request_bytes("GET", "/v1/status")).json
        host, _, port = str(status["address"]).removeprefix("http://").rpartition(":")
        self.socket = daemon.socket
        self.tcp = (host, int(port))
        self.authority = f"{host}:{port}"
        self.token_file = Path(status["token_file"])
        self.token = self.token_file.read_text().strip()

    def knock(self, address: Address, route: Route, query: str = "", **headers: str) -> Answer:
        """Ask for a route, as well as the headers allow; no header is added."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        body = b"{}" if route.body else None
        path = filled(route, session_id="none") + query
        return exchange(address, request_bytes(route.method, path, body, named))

    def ask(self, route: Route, query: str = "", **headers: str) -> Answer:
        """Ask for a route on the loopback port, with its host and token unless said otherwise."""
        wanted = {"Host": self.authority, "Authorization": f"Bearer {self.token}"} | headers
        return self.knock(self.tcp, route, query, **{k: v for k, v in wanted.items() if v})


@pytest.fixture(scope="module")
def door(daemon: RunningDaemon) -> Door:
    return Door(daemon)


def shared_with_pages(answer: Answer) -> list[str]:
    """Return the headers that would let a web page read an answer."""
    shared = ("access-control-", "cross-origin-", "timing-allow-origin")
    return [name for name, _ in answer.headers if name.startswith(shared)]


@every_route
def test_other_hosts_are_refused(door: Door, route: Route) -> None:
    port = door.tcp[1]
    for host in ("evil.example", "localhost.evil.example", "localhost:1", "127.0.0.1", "[::1]",
                 "localhost@evil.example", f"evil.example:{port}", f"127.0.0.1:{port}.evil", "-",
                 f"127.0.0.1:{port} ,evil", f"127.1:{port}", f"0.0.0.0:{port}", "*"):  # fmt: skip
        assert_problem(door.ask(route, Host=host), 403, "forbidden")
        if host != "localhost:1":
            assert_problem(door.knock(door.socket, route, Host=host), 403, "forbidden")


@every_route
def test_every_origin_is_refused(door: Door, route: Route) -> None:
    for origin in (
        PAGE,
        "null",
        "file://",
        f"http://{door.authority}",
        "http://localhost",
        "*",
        "x",
    ):
        for answer in (
            door.ask(route, Origin=origin),
            door.knock(door.socket, route, Origin=origin),
        ):
            assert_problem(answer, 403, "forbidden")
            assert shared_with_pages(answer) == []


@every_route
def test_the_port_wants_the_token_and_says_so(door: Door, route: Route) -> None:
    wrong = [
        "", "Bearer", "Bearer ", f"Bearer {door.token[:-1]}", f"Bearer {door.token}x", "Bearer x",
        f"Basic {door.token}", f"Token {door.token}", door.token, f"Bearer{door.token}",
        f"Bearer {door.token.swapcase()}", f"Bearer {door.token},Bearer x", "Bearer é",
        f'Bearer "{door.token}"', f"Bearer {sha256(door.token.encode()).hexdigest()}",
    ]  # fmt: skip
    for authorization in wrong:
        answer = door.ask(route, Authorization=authorization)
        told = assert_problem(answer, 401, "unauthenticated")
        assert answer.header("www-authenticate").startswith("Bearer")
        assert "sessiond status" in str(told.hint)
        assert door.token not in answer.body.decode()


@every_route
def test_a_token_in_the_address_or_a_cookie_opens_nothing(door: Door, route: Route) -> None:
    for query in (
        f"?token={door.token}",
        f"?access_token={door.token}",
        f"?Authorization={door.token}",
    ):
        assert_problem(door.ask(route, query, Authorization=""), 401, "unauthenticated")
    answer = door.ask(route, Authorization="", Cookie=f"token={door.token}")
    assert_problem(answer, 401, "unauthenticated")


@every_route
def test_the_right_host_and_token_open_every_route(door: Door, route: Route) -> None:
    port = door.tcp[1]
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"LOCALHOST:{port}", f"[::1]:{port}"):
        for scheme in ("Bearer", "bearer"):
            answer = door.ask(route, Host=host, Authorization=f"{scheme} {door.token}")
            assert answer.status not in (401, 403)
            assert shared_with_pages(answer) == []
    for host in ("localhost", "sessiond"):
        assert door.knock(door.socket, route, Host=host).status not in (401, 403)


@every_route
def test_a_preflight_request_of_a_web_page_is_refused(door: Door, route: Route) -> None:
    headers = {
        "Host": door.authority,
        "Origin": PAGE,
        "Access-Control-Request-Method": route.method,
        "Access-Control-Request-Headers": "authorization,content-type",
        "Access-Control-Request-Private-Network": "true",
    }
    answer = exchange(door.tcp, request_bytes("OPTIONS", filled(route), None, headers))
    assert_problem(answer, 403, "forbidden")
    assert shared_with_pages(answer) == []


@every_route
@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
def test_a_body_that_a_web_page_could_send_is_refused(
    door: Door, route: Route, content_type: str
) -> None:
    """What needs no preflight request is what a page may send to anybody."""
    data = request_bytes(route.method, filled(route), b"{}", {"Content-Type": content_type})
    assert_problem(exchange(door.socket, data), 415, "unsupported-media-type")


def test_unknown_routes_and_methods_are_guarded_too(door: Door) -> None:
    for target in ("/", "/v1/none", "*", "/v1/health/"):
        for method in ("GET", "OPTIONS", "PUT"):
            data = request_bytes(method, target, None, {"Host": "evil.example"})
            if target != "*" or method == "OPTIONS":  # else it is no HTTP
                assert_problem(exchange(door.socket, data), 403, "forbidden")
                assert_problem(exchange(door.tcp, data), 403, "forbidden")


def test_what_was_refused_was_not_done(door: Door, client: Client) -> None:
    before = client.get("/v1/sessions")
    body = b'{"session_id":"forged"}'
    for address, headers in (
        (door.socket, {"Origin": PAGE}),
        (door.socket, {"Host": "evil.example"}),
        (door.socket, {"Content-Type": "text/plain"}),
        (door.tcp, {"Host": door.authority}),
        (door.tcp, {"Host": door.authority, "Authorization": "Bearer x"}),
    ):
        assert_problem(exchange(address, request_bytes("POST", "/v1/sessions", body, headers)))
    assert client.get("/v1/sessions") == before


def test_listed_hosts_and_origins_are_let_through_and_only_they() -> None:
    with running_daemon("--port", "0", start=False) as daemon:
        daemon.environ["SESSIOND_API_ALLOWED_HOSTS"] = "sync.internal:8443,Box"
        daemon.environ["SESSIOND_API_ALLOWED_ORIGINS"] = "https://app.example,null"
        daemon.start()
        door = Door(daemon)
        health = next(route for route in ROUTES if route.path == "/v1/health")
        for host in ("sync.internal:8443", "SYNC.internal:8443", "Box", "box"):
            assert door.ask(health, Host=host).status == 200, host
            assert door.knock(door.socket, health, Host=host).status == 200, host
        for origin in ("https://app.example", "null"):
            answer = door.ask(health, Origin=origin)
            assert answer.status == 200
            assert shared_with_pages(answer) == []
            assert_problem(door.ask(health, Origin=origin, Authorization=""), 401)
        for host in ("sync.internal", "sync.internal:84430", "internal:8443", "boxes"):
            assert_problem(door.ask(health, Host=host), 403)
        for origin in (
            "https://app.example:8443",
            "http://app.example",
            "https://APP.example/",
            "https://app.example.evil",
            "null, null",
            f"{PAGE}, https://app.example",
        ):
            assert_problem(door.ask(health, Origin=origin), 403)


def test_tokens_are_compared_as_digests_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[Any, Any]] = []
    really = hmac.compare_digest

    def compare(one: Any, other: Any) -> bool:
        compared.append((one, other))
        return really(one, other)

    guard = Guard(token="t" * 43, port=80, allowed_hosts=[], allowed_origins=[])
    monkeypatch.setattr("sessiond.api.guard.hmac.compare_digest", compare)
    for given in ("", "t", "t" * 42, "é" * 43, "t" * 8000):
        headers = {"Host": "localhost:80", "Authorization": f"Bearer {given}"}
        with pytest.raises(Unauthenticated):
            guard.check(make_mocked_request("GET", "/", headers=headers), Peer(is_local=False))
    assert [len(one) for one, _ in compared] == [32] * 5
    assert {other for _, other in compared} == {sha256(b"t" * 43).digest()}
    assert "t" * 43 not in repr(vars(guard))


def assert_its_owners_alone(door: Door) -> None:
    assert stat.S_IMODE(door.socket.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(door.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(door.token_file.stat().st_mode) == 0o600
    assert stat.S_ISREG(door.token_file.lstat().st_mode)
    assert len(door.token) >= 43, "less than 256 bits"


def test_socket_folder_and_token_are_their_owners_alone(door: Door) -> None:
    assert_its_owners_alone(door)


@pytest.fixture(scope="module")
def open_handed() -> Iterator[RunningDaemon]:
    """A daemon that somebody started whose files are everybody's."""
    before = os.umask(0)
    try:
        with running_daemon("--port", "0") as daemon:
            yield daemon
    finally:
        os.umask(before)


@pytest.fixture
def careless(open_handed: RunningDaemon) -> Iterator[RunningDaemon]:
    """That daemon, with its folders closed before and after the test."""
    yield open_handed
    open_handed.folder.chmod(0o700)
    open_handed.socket.parent.chmod(0o700)
    open_handed.socket.chmod(0o600)


def test_the_umask_of_whoever_starts_it_changes_nothing(careless: RunningDaemon) -> None:
    assert_its_owners_alone(Door(careless))


def as_nobody(address: Path, data: bytes) -> bytes:
    """Send bytes to a socket as another user; return what came back, or the error's name."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        result = b"?"
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            other = socket.socket(socket.AF_UNIX)
            other.settimeout(10)
            other.connect(str(address))
            other.sendall(data)
            result = other.recv(1 << 16)
        except OSError as error:
            result = type(error).__name__.encode()
        finally:
            os.write(writing, result)
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as pipe:
        return pipe.read()


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


@needs_root
def test_another_user_cannot_connect(careless: RunningDaemon) -> None:
    data = request_bytes("GET", "/v1/health")
    assert as_nobody(careless.socket, data) == b"PermissionError"
    careless.folder.chmod(0o755)
    assert as_nobody(careless.socket, data) == b"PermissionError"
    careless.socket.parent.chmod(0o755)
    assert as_nobody(careless.socket, data) == b"PermissionError"


@needs_root
def test_another_user_who_can_connect_is_refused_on_every_route(careless: RunningDaemon) -> None:
    careless.folder.chmod(0o755)
    careless.socket.parent.chmod(0o755)
    careless.socket.chmod(0o666)
    for route in ROUTES:
        body = b"{}" if route.body else None
        answer = as_nobody(careless.socket, request_bytes(route.method, filled(route), body))
        assert answer.startswith(b"HTTP/1.1 403 "), (name_of(route), answer)
        assert b"another user" in answer


def test_the_token_stays_the_same_after_a_restart(careless: RunningDaemon, door: Door) -> None:
    first = Door(careless)
    careless.stop()
    careless.start()
    again = Door(careless)
    assert again.token == first.token
    assert again.token != door.token, "two daemons made the same token"
    assert again.ask(next(route for route in ROUTES if route.path == "/openapi.json")).status == 200
    assert again.token not in careless.log


def assert_start_refused(stopped: RunningDaemon, *flags: str) -> str:
    """Start a daemon that must refuse with exit code 4; return what it said."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "sessiond", "run", *stopped.flags, *flags],
            env=stopped.environ, capture_output=True, text=True, timeout=5, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        pytest.fail("it neither started nor refused to")
    assert done.returncode == 4, (done.returncode, done.stderr)
    assert "hint:" in done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.fixture
def stopped(daemon: RunningDaemon) -> Iterator[RunningDaemon]:
    """A daemon that was not started, on the server of another, with a folder of its own."""
    with running_daemon("--redis-url", f"unix://{daemon.redis_socket}", start=False) as stopped:
        stopped.socket.parent.mkdir(mode=0o700)
        yield stopped


def test_an_address_beyond_this_machine_is_refused_at_start(stopped: RunningDaemon) -> None:
    host = "0.0.0.0"  # noqa: S104 - it must be refused
    assert "loopback" in assert_start_refused(stopped, "--host", host, "--port", "0")
    assert list(stopped.socket.parent.iterdir()) == []


def test_a_daemon_does_not_start_in_a_folder_that_others_can_write_to(
    stopped: RunningDaemon,
) -> None:
    stopped.socket.parent.chmod(0o770)
    assert "chmod 700" in assert_start_refused(stopped)


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """A folder of our own."""
    folder = tmp_path / "private"
    folder.mkdir(mode=0o700)
    return folder


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o720, 0o702, 0o777])
def test_no_socket_is_made_in_a_folder_that_others_can_write_to(private: Path, mode: int) -> None:
    private.chmod(mode)
    with pytest.raises(ConfigurationError, match="writable") as refused:
        bind_unix(private / "api.sock")
    assert "chmod 700" in refused.value.hint
    assert list(private.iterdir()) == []


def test_no_socket_is_made_below_a_folder_that_others_can_write_to(private: Path) -> None:
    folder = private / "inner"
    folder.mkdir(mode=0o700)
    private.chmod(0o777)
    with pytest.raises(ConfigurationError, match=str(private)):
        bind_unix(folder / "api.sock")
    private.chmod(0o700)
    bind_unix(folder / "api.sock").close()


def test_a_missing_folder_is_made_for_its_owner_alone(private: Path) -> None:
    bind_unix(private / "a" / "b" / "api.sock").close()
    assert stat.S_IMODE((private / "a").stat().st_mode) == 0o700
    assert stat.S_IMODE((private / "a" / "b").stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "make", [Path.touch, Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/nowhere")]
)
def test_what_lies_in_the_sockets_place_is_not_overwritten(
    private: Path, make: Callable[[Path], object]
) -> None:
    path = private / "api.sock"
    make(path)
    before = path.lstat()
    with pytest.raises(ConfigurationError):
        bind_unix(path)
    assert path.lstat() == before


def linked(path: Path) -> None:
    target = path.with_name("target")
    target.write_text("x" * 43)
    target.chmod(0o600)
    path.symlink_to(target)


def readable(path: Path) -> None:
    path.write_text("x" * 43)
    path.chmod(0o644)


def short(path: Path) -> None:
    path.write_text("x" * 42)
    path.chmod(0o600)


def empty(path: Path) -> None:
    path.touch(0o600)


def foreign(path: Path) -> None:
    path.write_text("x" * 43)
    path.chmod(0o600)
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    shutil.chown(path, NOBODY)


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Interrupt what would block for ever."""

    def interrupt(*_: object) -> None:
        raise AssertionError("it blocked")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("make", [linked, readable, short, empty, foreign, Path.mkdir, os.mkfifo])
def test_a_token_file_that_is_not_ours_alone_is_refused(
    private: Path, make: Callable[[Path], object]
) -> None:
    path = private / "api.token"
    make(path)
    before = path.lstat()
    with at_most(2), pytest.raises(ConfigurationError, match=r"api\.token"):
        token(path)
    assert path.lstat().st_mode == before.st_mode
    assert path.lstat().st_ino == before.st_ino


def test_a_daemon_does_not_start_with_a_token_file_that_is_a_link(stopped: RunningDaemon) -> None:
    linked(stopped.socket.with_name("api.token"))
    assert "api.token" in assert_start_refused(stopped, "--port", "0")
    assert not stopped.socket.is_socket(), "a refused start left its socket behind"


def test_a_second_daemon_does_not_take_the_socket_away(
    daemon: RunningDaemon, stopped: RunningDaemon
) -> None:
    assert "another daemon" in assert_start_refused(stopped, "--socket", str(daemon.socket))
    with connected(daemon.socket) as wire:
        wire.send(request_bytes("GET", "/v1/health"))
        assert wire.answer().status == 200
