"""config/redis-acl.conf on real servers: the daemon can do all its work, and nobody more."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis import Redis
from redis.exceptions import AuthenticationError, ResponseError

from sessiond.api.opencode import Imported, Sharing
from sessiond.client import DaemonClient
from sessiond.errors import NotFound, SessionDeleted
from sessiond.journal.reports import EntryPage, Verdict
from sessiond.manager.session_cache import SessionCache
from sessiond.model import (
    CacheAnswer,
    CacheDropped,
    Choice,
    Context,
    NewMessage,
    NewSession,
    PresentSessions,
)
from sessiond.opencode.protocol import Attached, Attachment, Turn, WantedTurn
from sessiond.service.health.repairing import RepairPlan, RepairRequest
from sessiond.service.health.scanning import ScanPage, ScanRequest
from sessiond.service.health.tracing import SessionTrace
from sessiond.service.opencode.overview import Overview
from sessiond.service.status import (
    CleanupReport,
    Diagnosis,
    Health,
    KeyContent,
    OutboxStatus,
    Status,
)
from sessiond.store.keys import Keys
from tests.deploy import (
    NO_PASSWORD,
    PASSWORDS,
    acl_file,
    acl_rules,
    binaries,
    daemon,
    login,
    redis_server,
    short_folder,
    until,
)
from tests.opencode.tables import add_event, add_session, make_database

KEYS = Keys()
WORKSPACE = "work"
LIFE_SECONDS = 30
ALWAYS_ALLOWED = {"auth", "hello", "quit", "reset"}  # whatever a rule says
YOUNGER_THAN_7_0 = {"client|setinfo", "client|no-touch", "client|capa", "client|import-source"}
ASKED_IN_VAIN = {"config|get", "scan", "slowlog|get", "waitaof"}
"""What a daemon asks where it may; the file does not allow it, and `sessiond doctor` says so."""
AFTER_A_MINUTE = {"xtrim"}
"""What compression needs: it begins when a long log has settled."""
OF_THE_TEST = {"acl|log", "config|resetstat", "info", "set"}

FORBIDDEN: list[tuple[str, ...]] = [
    ("KEYS", "*"),
    ("SCAN", "0"),
    ("RANDOMKEY",),
    ("DBSIZE",),
    ("CONFIG", "GET", "*"),
    ("CONFIG", "SET", "maxmemory", "1"),
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("SHUTDOWN", "NOSAVE"),
    ("DEBUG", "SLEEP", "0"),
    ("ACL", "LIST"),
    ("ACL", "SETUSER", "sessiond", "+@all"),
    ("MONITOR",),
    ("SLOWLOG", "GET"),
    ("CLIENT", "LIST"),
    ("CLIENT", "KILL", "TYPE", "normal"),
    ("CLIENT", "PAUSE", "1"),
    ("SCRIPT", "FLUSH"),
    ("FUNCTION", "LIST"),
    ("MODULE", "LIST"),
    ("REPLICAOF", "NO", "ONE"),
    ("SAVE",),
    ("BGREWRITEAOF",),
    ("SELECT", "0"),
    ("SORT", "sessiond:sessions"),
    ("RENAME", "sessiond:sessions", "other"),
    ("DUMP", "sessiond:sessions"),
    ("EXPIRE", "sessiond:sessions", "1"),
    ("PUBSUB", "CHANNELS"),
]
FOREIGN: list[tuple[str, ...]] = [
    ("GET", "other"),
    ("HGETALL", "sessiond"),
    ("HGETALL", "sessiondother:{s}:metadata"),
    ("XRANGE", "other:{s}:conversation", "-", "+"),
    ("TYPE", "other"),
    ("SUBSCRIBE", "other:{s}:events"),
    ("SUBSCRIBE", "__keyevent@0__:del"),
]
BEYOND: list[tuple[str, ...]] = [
    ("HSET", "other:{s}:metadata", "a", "b"),
    ("DEL", "other"),
    ("PUBLISH", "other:{s}:events", "hello"),
    ("EVAL", "return redis.call('GET', 'other')", "0"),
    ("EVAL", "return redis.call('GET', KEYS[1])", "1", "other"),
    ("EVAL", "return redis.call('PUBLISH', 'other', 'hello')", "0"),
    ("EVAL", "return redis.call('FLUSHALL')", "0"),
    ("EVAL", "return redis.call('SET', 'sessiond:a', 'b')", "0"),
]
WRITES: list[tuple[str, ...]] = [
    ("SET", "sessiond:a", "b"),
    ("HSET", "sessiond:{s}:metadata", "status", "deleted"),
    ("XADD", "sessiond:{s}:conversation", "*", "a", "b"),
    ("ZADD", "sessiond:sessions", "1", "a"),
    ("DEL", "sessiond:sessions"),
    ("PUBLISH", "sessiond:{s}:events", "hello"),
    ("EVAL", "return 1", "0"),
    ("EVALSHA", "0" * 40, "0"),
]


class Evidence(msgspec.Struct, frozen=True):
    """What a server tells after a daemon has done all that it can do there.

    `asked`: method and path of every request; `offered`: those of the API's description.
    """

    socket: Path
    log: list[Any]
    used: set[str]
    asked: list[str]
    offered: set[str]
    daemon_log: str


class RecordingClient(DaemonClient):
    """A client that remembers what it asked for."""

    def __init__(self, *, socket: str) -> None:
        super().__init__(socket=socket)
        self.asked: list[str] = []

    async def _exchange(self, method: str, path: str, kind: Any, **more: Any) -> Any:
        self.asked.append(f"{method} {path}")
        return await super()._exchange(method, path, kind, **more)

    async def stream(self, path: str, last_id: str) -> Any:
        self.asked.append(f"GET {path}")
        async for event in super().stream(path, last_id):
            yield event


@pytest.fixture(name="evidence", scope="module", params=binaries())
def _evidence(request: pytest.FixtureRequest) -> Iterator[Evidence]:
    """The work of a daemon's life, done by the user `sessiond`; the server still runs."""
    with ExitStack() as stack:
        folder = stack.enter_context(short_folder())
        acl = acl_file(folder)
        socket = stack.enter_context(
            redis_server(request.param, folder, "--aclfile", acl, user="admin")
        )
        admin = stack.enter_context(login(socket, "admin"))
        leave_old_conflicts(admin)
        admin.acl_log_reset()
        admin.config_resetstat()
        url = f"unix://sessiond:{PASSWORDS['sessiond']}@{socket}"
        with daemon(folder, "--redis-url", url, SESSIOND_REDIS_DURABILITY="replica") as api:
            asked, offered = asyncio.run(work(str(api), admin, folder / "opencode.db"))
        yield Evidence(
            socket=socket,
            log=admin.acl_log(),
            used=commands_used(admin) - OF_THE_TEST | {"info"},
            asked=asked,
            offered=offered,
            daemon_log=(folder / "sessiond.log").read_text(),
        )


def commands_used(admin: Redis) -> set[str]:
    stats = admin.info("commandstats")
    return {name.removeprefix("cmdstat_") for name, row in stats.items() if row["calls"]}


async def work(api: str, admin: Redis, database: Path) -> tuple[list[str], set[str]]:
    """Ask for everything that the API offers, and expect it to be done."""
    client = RecordingClient(socket=api)
    try:
        first = await client.create(
            NewSession(
                session_id="s",
                workspace=WORKSPACE,
                context=Context(active_files=["a.py"]),
                preferences={"theme": "dark"},
            )
        )
        assert first.metadata.workspace == WORKSPACE
        async with asyncio.TaskGroup() as listeners, asyncio.timeout(LIFE_SECONDS):
            of_session = listeners.create_task(operations_heard(client, "/v1/sessions/s/events"))
            of_workspace = listeners.create_task(
                operations_heard(client, f"/v1/workspaces/{WORKSPACE}/events")
            )
            await write_messages(client)
            await write_documents(client)
            await decide_conflicts(client)
            await read_sessions(client)
            await look_inside(client, admin)
            await be_present(client)
            await cache_answers(client)
            await attach_an_opencode(client, make_database(database))
            # The bus pings only a subscription that has lasted some seconds.
            await asyncio.to_thread(until, lambda: "ping" in commands_used(admin), within_s=20)
            await client.send_live("s", {"typing": True})
            await leave_and_come_back(client)
            await client.delete("s")
            with pytest.raises(SessionDeleted, match="kept as conflict"):
                await client.append("s", [NewMessage(role="user", content="late")])
        with pytest.raises(SessionDeleted):
            await client.load("s")
        assert of_session.result() >= {"message.edit", "part.remove", "document.change", "live"}
        assert of_workspace.result() >= {"positions", "message.edit", "live"}
        return client.asked, await offered_by(client)
    finally:
        await client.close()


async def operations_heard(client: DaemonClient, path: str) -> set[str]:
    """The names of all events until the session is deleted."""
    heard = set()
    async for event in client.stream(path, "0" if "sessions" in path else ""):
        heard.add(event.name)
        if event.name == "session.delete":
            break
    return heard


async def write_messages(client: DaemonClient) -> None:
    said = NewMessage(role="user", content="hello", id="m1")
    assert not (await client.append("s", [said])).duplicate
    assert (await client.append("s", [said])).duplicate
    group = [NewMessage(role="user", content="one"), NewMessage(role="assistant", content="two")]
    written = await client.append("s", group, key="a-key")
    assert (await client.append("s", group, key="a-key")).records == written.records
    for _ in range(2):  # the second time its key says that it is done
        await client.edit("s", "m1", {"content": "hello there"}, key="an-edit")
    for text in ("a", "b"):
        await client.put_part("s", "m1", "p1", {"type": "text", "text": text})
    found = await client.message("s", "m1")
    assert (found.message.parts or [])[-1]["text"] == "b"
    await client.remove_part("s", "m1", "p1")
    await client.remove("s", written.records[0].id)
    page = await client.page("s")
    assert [message.content for message in page.messages][-1] == "two"


async def write_documents(client: DaemonClient) -> None:
    await client.change_document("s", "context", {"active_files": None, "state": {"step": 1}})
    await client.change_document("s", "preferences", {"theme": "light"}, replace=True)
    for theme in ("dark", None):
        await client.change_user_preferences("ana", {"theme": theme})
    assert await client.user_preferences("ana") == {}
    await client.change_document("s", "metadata", {"title": "A title"})
    await client.change_document("s", "metadata", {"title": None})
    assert (await client.document("s", "context")).value["state"] == {"step": 1}


async def decide_conflicts(client: DaemonClient) -> None:
    base = (await client.document("s", "preferences")).version
    for theme in ("theirs", "ours"):
        changed = await client.change_document("s", "preferences", {"theme": theme}, base=base)
    assert changed.conflicts
    (number,) = changed.conflicts
    assert await client.conflicts() == await client.conflicts("s")
    resolved = await client.resolve("s", number, Choice(take="theirs"))
    assert resolved == await client.conflict("s", number)


def leave_old_conflicts(admin: Redis) -> None:
    """Leave what the daemon has to trim when it begins: an old conflict, and one of another day."""
    admin.zadd(KEYS.contested, {"before": 1})
    for number, year in ((5, 2001), (6, 9001)):
        at = f"{year}-01-13T10:30:00.000Z"
        fields = ("what", "nothing known", "at", at, "json", "{}")
        admin.execute_command("XADD", KEYS.conflicts("before"), f"{number}-0", *fields)


async def read_sessions(client: DaemonClient) -> None:
    await client.create(NewSession(workspace=WORKSPACE), key="another-session")
    page = await client.list_sessions(workspace=WORKSPACE, limit=1)
    assert page.cursor
    rest = await client.list_sessions(workspace=WORKSPACE, cursor=page.cursor)
    ids = [listed.metadata.session_id for listed in [*page.sessions, *rest.sessions]]
    assert len(ids) == 2
    assert "s" in ids
    loaded = await client.load("s")
    assert (await client.window("s")).messages == loaded.conversation.messages
    assert loaded.position == await client.position("s")
    operations = (await client.operations("s")).operations
    assert operations[-1].position == loaded.position


async def look_inside(client: DaemonClient, admin: Redis) -> None:
    for path in ("/v1/health", "/v1/ready"):
        assert (await client.call("GET", path, Health))[0].ready
    status: Status = (await client.call("GET", "/v1/status", Status))[0]
    assert status.sessions == 2
    assert status.bus_connected
    assert PASSWORDS["sessiond"] not in str(status)
    outbox: OutboxStatus = (await client.call("GET", "/v1/journal", OutboxStatus))[0]
    assert outbox.waiting == 0
    verdict: Verdict = (await client.call("POST", "/v1/journal/verification", Verdict))[0]
    assert verdict.faults == []
    entries: EntryPage = (await client.call("GET", "/v1/journal/entries", EntryPage))[0]
    assert len(entries.entries) == verdict.entries > 0
    diagnosis: Diagnosis = (await client.call("GET", "/v1/doctor", Diagnosis))[0]
    told = {finding.check: finding.finding for finding in diagnosis.findings}
    assert "is not told to this user" in told["persistence"]
    page: ScanPage
    page, _ = await client.call("POST", "/v1/scan", ScanPage, body=ScanRequest())
    assert [each.key for each in page.damage] == [KEYS.all_of_sessions()], "no SCAN, and it says so"
    assert page.sessions == status.sessions
    admin.hset(KEYS.metadata("s"), "title", "damaged")
    plan: RepairPlan
    apply = RepairRequest(apply=True)
    plan, _ = await client.call("POST", "/v1/sessions/s/repair", RepairPlan, body=apply)
    assert plan.applied
    for dry_run in ("true", "false"):
        query = {"dry_run": dry_run}
        await client.call("POST", "/v1/cleanup", CleanupReport, query=query)
    option = {"debug.sessions": "true"}
    await client.call("PATCH", "/v1/config", dict[str, str], body=option)
    assert (await client.call("GET", "/v1/config", dict[str, str]))[0].items() >= option.items()
    admin.set("sessiond:{s}:text", "plain")  # no key of ours is one today; a person's may be
    trace: SessionTrace
    await client.append("s", [NewMessage(role="user", content="traced", id="traced")])
    path, query = "/v1/sessions/s/trace", {"operation": "traced"}
    trace, _ = await client.call("GET", path, SessionTrace, query=query)
    assert trace.complete
    assert "committed" in [event.stage for event in trace.events]
    kinds = {
        KEYS.metadata("s"): "hash",
        KEYS.conversation("s"): "stream",
        KEYS.sessions: "zset",
        "sessiond:{s}:text": "string",
    }
    for key, kind in kinds.items():
        found: KeyContent
        found, _ = await client.call("GET", "/v1/redis", KeyContent, query={"key": key})
        assert found.type == kind
    with pytest.raises(NotFound):
        await client.call("GET", "/v1/redis", KeyContent, query={"key": "sessiond:none"})


async def leave_and_come_back(client: DaemonClient) -> None:
    assert (await client.archive("s", idle_seconds=0)).archived
    assert not (await client.restore("s")).archived
    await client.archive("s", idle_seconds=0)
    assert (await client.load("s")).conversation.messages


async def be_present(client: DaemonClient) -> None:
    for files in (["a.py"], []):
        await client.announce("s", "somebody", files)
    assert [who.instance for who in (await client.presence("s")).present] == ["somebody"]
    found: PresentSessions
    found, _ = await client.call("GET", "/v1/presence", PresentSessions)
    assert [each.session_id for each in found.sessions] == ["s"]
    await client.leave("s", "somebody")


async def cache_answers(client: DaemonClient) -> None:
    cache = SessionCache(client, "s", str(Path(os.__file__).parent))  # files that nobody changes
    for path in ("os.py", "abc.py", "io.py"):
        assert (await cache.put(await cache.get("cat", path=path), "text")).stored
    found = await cache.get("cat", path="os.py")
    assert found.is_hit
    one = f"/v1/sessions/s/cache/{found.answer.key}"
    where = {"root": str(Path(os.__file__).parent)}
    answer: CacheAnswer
    answer, _ = await client.call("GET", one, CacheAnswer, query=where)
    assert answer.value == "text"
    await client.call("DELETE", one, CacheDropped)
    assert await cache.invalidate("abc.py") == 1
    assert [entry.path for entry in (await cache.contents()).entries] == ["io.py"]
    assert await cache.clear() == 1


async def attach_an_opencode(client: DaemonClient, database: Path) -> None:
    instance = "/v1/opencode/instances/oc-1"
    now = round(time.time() * 1000)
    add_session(database, "ses_oc", "project", now)
    described = Attachment(
        version="1.18.33",
        plugin="0.1.0",
        pid=1,
        database=str(database),
        project_id="project",
        directory="/home/dev/proj",
        worktree="/home/dev/proj",
    )
    attached: Attached
    attached, _ = await client.call("PUT", instance, Attached, body=described)
    assert attached.workspace == "project"
    commands = client.stream(f"{instance}/commands", "")
    first = asyncio.create_task(anext(commands))
    user = {"id": "msg_1", "sessionID": "ses_oc", "role": "user", "time": {"created": now}}
    told = {"sessionID": "ses_oc", "info": user}
    created = {"type": "session.created", "properties": {"sessionID": "ses_oc"}}
    await client.call("POST", f"{instance}/events", None, body={"events": [created]})
    add_event(database, "ses_oc", "message.updated.1", told)
    add_event(database, "ses_oc", "message.updated.1", told)
    events = [
        {"id": "evt_1", "type": "message.updated", "properties": told},
        {"type": "message.part.delta", "properties": {"sessionID": "ses_oc", "delta": "a"}},
    ]
    await client.call("POST", f"{instance}/events", None, body={"events": events})
    assert (await client.page("ses_oc")).messages[0].id == "msg_1"
    wanted = WantedTurn(session_id="ses_oc", wait_seconds=0)
    turn: Turn
    turn, _ = await client.call("POST", f"{instance}/turns", Turn, body=wanted)
    assert turn.granted
    await client.call("DELETE", f"{instance}/turns/ses_oc", None)
    await client.call("POST", "/v1/opencode/import", Imported)
    private = {"shared": False}
    await client.call("PUT", "/v1/opencode/sessions/ses_oc/sharing", Sharing, body=private)
    await client.call("POST", f"{instance}/applied", None, body={"batch": 9, "outcome": "held"})
    overview: Overview
    overview, _ = await client.call("GET", "/v1/opencode", Overview)
    assert [one.instance for one in overview.instances] == ["oc-1"]
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await asyncio.sleep(6)  # its attachment ends, and a heartbeat of the daemon has told of it


async def offered_by(client: DaemonClient) -> set[str]:
    document: dict[str, dict[str, dict[str, Any]]]
    document, _ = await client.call("GET", "/openapi.json", dict[str, Any])
    return {
        f"{method.upper()} {path}"
        for path, methods in document["paths"].items()
        for method in methods
    }


def route_of(request: str, offered: set[str]) -> str:
    """The route that a request took: the one with the fewest parameters that fits."""
    fitting = [
        route
        for route in offered
        if re.fullmatch(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(route)), request)
    ]
    return min(fitting, key=lambda route: route.count("{"))


def test_the_daemon_does_all_its_work_with_the_rights_of_its_user(evidence: Evidence) -> None:
    assert {row["object"] for row in evidence.log} <= ASKED_IN_VAIN
    assert "refuses this user" not in evidence.daemon_log
    assert '"event": "daemon.stopped"' in evidence.daemon_log


def test_all_its_work_means_every_route(evidence: Evidence) -> None:
    """A new route needs a step in `work`: it may use commands that the rights do not cover."""
    taken = {route_of(request, evidence.offered) for request in evidence.asked}
    assert evidence.offered - taken == set()


def test_the_daemon_has_no_right_that_its_work_does_not_use(evidence: Evidence) -> None:
    with login(evidence.socket, "admin") as admin:
        allowed = commands_allowed(admin, "sessiond")
    assert evidence.used - allowed == set()
    unused = allowed - evidence.used - ALWAYS_ALLOWED - YOUNGER_THAN_7_0
    assert unused - AFTER_A_MINUTE == set()


def test_the_inspector_has_only_rights_that_read(evidence: Evidence) -> None:
    with login(evidence.socket, "admin") as admin:
        admin.response_callbacks.clear()
        for name in commands_allowed(admin, "inspector") - ALWAYS_ALLOWED:
            (described,) = admin.execute_command("COMMAND", "INFO", name)
            assert not {"write", "admin"} & set(described[2]), name


def commands_allowed(admin: Redis, user: str) -> set[str]:
    """The commands that the server would let a user run; the keys are left aside."""
    admin.response_callbacks.clear()
    names: list[str] = admin.execute_command("COMMAND", "LIST")
    heads = {name.partition("|")[0] for name in names if "|" in name}
    allowed = set()
    for name, described in zip(
        names, admin.execute_command("COMMAND", "INFO", *names), strict=True
    ):
        if name not in heads:
            words = name.split("|")
            arguments = ["1"] * (abs(described[1]) - len(words))
            verdict = admin.execute_command("ACL", "DRYRUN", user, *words, *arguments)
            if "no permissions to run" not in verdict:
                allowed.add(name)
    return allowed


@pytest.mark.parametrize("user", ["sessiond", "inspector"])
@pytest.mark.parametrize("command", FORBIDDEN, ids=" ".join)
def test_what_nobody_needs_is_refused(
    evidence: Evidence, user: str, command: tuple[str, ...]
) -> None:
    assert_refused(evidence, user, command)


@pytest.mark.parametrize("command", [*FOREIGN, *BEYOND], ids=" ".join)
def test_the_daemon_does_not_reach_what_is_not_sessionds(
    evidence: Evidence, command: tuple[str, ...]
) -> None:
    assert_refused(evidence, "sessiond", command)


@pytest.mark.parametrize("command", [*FOREIGN, *WRITES, ("PSUBSCRIBE", "*")], ids=" ".join)
def test_the_inspector_neither_writes_nor_reads_what_is_not_sessionds(
    evidence: Evidence, command: tuple[str, ...]
) -> None:
    assert_refused(evidence, "inspector", command)


def assert_refused(evidence: Evidence, user: str, command: tuple[str, ...]) -> None:
    """Each server has words of its own, and a script others than a command."""
    with login(evidence.socket, user) as redis:
        redis.response_callbacks.clear()
        with pytest.raises(ResponseError, match=r"(?i)permission|can't|DEBUG command not allowed"):
            redis.execute_command(*command)


def test_the_inspector_reads_all_kinds_of_keys_and_hears_events(evidence: Evidence) -> None:
    with login(evidence.socket, "inspector") as redis:
        assert "s" not in redis.zrange(KEYS.sessions, 0, -1)
        assert redis.hget(KEYS.metadata("s"), "status") == "deleted"
        ((_, entry),) = redis.xrange(KEYS.conversation("s"))
        assert entry["op"] == "session.delete"
        assert redis.get("sessiond:{s}:text") == "plain"
        assert redis.type(KEYS.sessions) == "zset"
        assert redis.memory_usage(KEYS.sessions)
        assert redis.info("server")
        with redis.pubsub() as listener:
            listener.psubscribe("sessiond:*")
            listener.subscribe(KEYS.events("s"))
            heard = [listener.get_message(timeout=5) for _ in range(2)]
            assert [message and message["type"] for message in heard] == ["psubscribe", "subscribe"]


@pytest.mark.parametrize(
    ("user", "password"),
    [("", ""), ("default", "a-password"), ("sessiond", "wrong"), ("inspector", "a-password")],
)
def test_nobody_gets_in_without_a_password(evidence: Evidence, user: str, password: str) -> None:
    with login(evidence.socket, user, password) as redis, pytest.raises(AuthenticationError):
        redis.ping()


def test_the_file_as_it_is_admits_nobody() -> None:
    """The rows of zeros are the digest of no known password: a forgotten step is noticed."""
    nothing = ["resetpass", "resetkeys", "resetchannels", "-@all"]
    assert acl_rules("default") == ["user", "default", "off", *nothing]
    for user in ("sessiond", "inspector"):
        words = acl_rules(user)
        assert words[:4] == ["user", user, "on", f"#{NO_PASSWORD}"]
        assert not [word for word in words if word.startswith(">") or word == "nopass"]
