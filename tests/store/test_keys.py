"""Names of keys and channels, and that Redis holds no others."""

from __future__ import annotations

import re

import pytest
from redis.crc import key_slot

from sessiond.model import CacheCall, NewMessage, NewSession
from sessiond.policy.caching import key_of
from sessiond.service.writing import Request
from sessiond.store.blocks import BlockStore, pack
from sessiond.store.cache import Answer, CacheStore
from sessiond.store.janitor import JanitorStore
from sessiond.store.keys import TABLE, KeyKind, Keys
from sessiond.store.leases import LeaseStore
from sessiond.store.opencode import OpencodeStore
from sessiond.store.presence import About, PresenceStore
from sessiond.store.use import UseStore
from tests.store.support import Services, until

SESSION_KINDS = [kind for kind, row in TABLE.items() if "<id>" in row.pattern]
OF_REPAIRS = {"quarantine", "repair"}
"""Written by repairs only: tests/service/health/test_repairing.py sees them."""
OF_DEBUGGING = {"trace"}
"""Written in debug mode only: tests/service/health/test_tracing.py sees it."""
OF_REAL_SERVERS = {"probe", "replication"}
"""Gone in a moment, and only where fakeredis cannot go: test_probe and test_replicas see them."""
CHANNELS = [
    kind for kind, row in TABLE.items() if row.type == "channel" and kind not in OF_REAL_SERVERS
]


def fits(row: KeyKind, namespace: str, name: str) -> bool:
    pattern = re.escape(row.pattern.replace("sessiond", namespace, 1))
    pattern = pattern.replace("<id>", "[A-Za-z0-9_-]+").replace("<workspace>", "[A-Za-z0-9_.-]+")
    pattern = pattern.replace("<user>", "[A-Za-z0-9_.@+-]+")
    pattern = pattern.replace("<time>", "[0-9]+").replace("<kind>", "[a-z]+")
    return re.fullmatch(pattern, name) is not None


def test_every_family_of_keys_says_what_it_is() -> None:
    for kind, row in TABLE.items():
        assert row.pattern.startswith("sessiond:"), kind
        assert row.type in {"hash", "stream", "zset", "channel", "any"}, kind
        assert row.meaning, kind
        assert bool(row.lifetime) == (row.type != "channel"), kind


def test_every_key_of_a_session_carries_its_hash_tag() -> None:
    for kind in SESSION_KINDS:
        suffix = kind if kind not in OF_REPAIRS else f"{kind}:"
        assert TABLE[kind].pattern.startswith(f"sessiond:{{<id>}}:{suffix}")


def test_all_keys_of_a_session_and_its_channel_live_in_one_cluster_slot() -> None:
    keys = Keys()
    names = [*keys.log("ses_1"), keys.events("ses_1"), *keys.archiving("ses_1")]
    names += keys.use("ses_1")
    names += keys.cache("ses_1")
    assert len({key_slot(name.encode()) for name in names}) == 1
    assert key_slot(keys.metadata("ses_2").encode()) != key_slot(keys.metadata("ses_1").encode())


def test_names_are_those_of_the_table() -> None:
    keys = Keys()
    assert keys.metadata("a") == "sessiond:{a}:metadata"
    assert keys.conversation("a") == "sessiond:{a}:conversation"
    assert keys.blocks("a") == "sessiond:{a}:blocks"
    assert keys.messages("a") == "sessiond:{a}:messages"
    assert keys.parts("a") == "sessiond:{a}:parts"
    assert keys.applied("a") == "sessiond:{a}:applied"
    assert keys.document("a", "metadata") == "sessiond:{a}:metadata"
    assert keys.document("a", "context") == "sessiond:{a}:context"
    assert keys.document("a", "preferences") == "sessiond:{a}:preferences"
    assert keys.events("a") == "sessiond:{a}:events"
    assert keys.workspace("w") == "sessiond:workspace:w"
    assert keys.workspace_events("w") == "sessiond:workspace:w:events"
    assert keys.workspace_events_pattern % "w" == keys.workspace_events("w")
    assert keys.archive("a") == "sessiond:{a}:archive"
    assert keys.user_preferences("u@w") == "sessiond:user:u@w:preferences"
    assert keys.user_changes("u@w") == "sessiond:user:u@w:changes"
    assert keys.presence("a") == "sessiond:{a}:presence"
    assert keys.sessions == "sessiond:sessions"
    assert keys.present == "sessiond:present"
    assert keys.instances == "sessiond:instances"


def test_a_key_of_a_session_is_recognised_and_no_other() -> None:
    keys = Keys("t*")
    for kind in SESSION_KINDS:
        if kind not in OF_REPAIRS | {"events"}:
            assert keys.parsed(f"t*:{{ses_1}}:{kind}".encode()) == ("ses_1", kind)
    moved = keys.quarantine("ses_1", "1768300200000", "parts")
    assert keys.parsed(moved.encode()) == ("ses_1", "quarantine")
    assert keys.parsed(keys.repair("ses_1", "parts").encode()) == ("ses_1", "repair")
    for foreign in ("t*:{ses_1}:foreign", "t*:sessions", "t*:{ses_1", "x:{ses_1}:parts", "\xff"):
        assert keys.parsed(foreign.encode("latin-1")) is None


def test_the_commit_script_gets_the_keys_in_the_order_that_its_header_states() -> None:
    kinds = [name.rpartition(":")[2] for name in Keys().log("a")]
    assert kinds == [
        "metadata",
        "conversation",
        "messages",
        "parts",
        "applied",
        "context",
        "preferences",
        "conflicts",
        "blocks",
    ]


@pytest.mark.parametrize("namespace", ["sessiond", "t", "my-team_2"])
def test_a_namespace_is_the_first_word_of_every_name(namespace: str) -> None:
    keys = Keys(namespace)
    names = [*keys.log("a"), keys.events("a"), keys.sessions, keys.instances, keys.contested]
    names += [*keys.archiving("a"), keys.opencodes, keys.present, *keys.cache("a")]
    names += [keys.trace("a")]
    names += [keys.quarantine("a", "1768300200000", "parts"), keys.repair("a", "parts")]
    names += [
        keys.writers,
        keys.reads("a"),
        keys.janitor,
        keys.probe,
        keys.replication,
        keys.workspace("w"),
        keys.workspace_events("w"),
        keys.user_preferences("u"),
        keys.user_changes("u"),
    ]
    assert all(name.startswith(f"{namespace}:") for name in names)
    matching = {kind for kind, row in TABLE.items() for name in names if fits(row, namespace, name)}
    assert matching == set(TABLE)


async def test_a_full_workload_leaves_exactly_the_kinds_of_keys_that_the_table_declares(
    core: Services,
) -> None:
    channels: set[str] = set()
    listener = core.redis.pubsub()
    await listener.psubscribe(f"{core.keys.namespace}:*")
    await listener.get_message(timeout=None)

    await _everything(core)
    found: dict[str, str] = {}
    async for key in core.redis.scan_iter(f"{core.keys.namespace}:*", count=10_000):
        found[key.decode()] = (await core.redis.type(key)).decode()
    while len(channels) < len(CHANNELS):
        message = await listener.get_message(timeout=5)
        assert message is not None, f"only {channels} were published on"
        channels.add(message["channel"].decode())
    await listener.aclose()

    kinds = set()
    for name, type_ in found.items():
        (kind,) = [kind for kind, row in TABLE.items() if fits(row, core.keys.namespace, name)]
        assert TABLE[kind].type == type_, name
        kinds.add(kind)
    assert kinds == TABLE.keys() - set(CHANNELS) - OF_REAL_SERVERS - OF_REPAIRS - OF_DEBUGGING
    for name in channels:
        (kind,) = [kind for kind, row in TABLE.items() if fits(row, core.keys.namespace, name)]
        assert TABLE[kind].type == "channel", name


async def _everything(core: Services) -> None:
    await core.preferences.change("ann", {"theme": "dark"})
    for name in ("ses_1", "ses_2", "ses_3"):
        await core.sessions.create(
            NewSession(session_id=name, workspace="w.1", preferences={"theme": "dark"})
        )
    await core.messages.append("ses_1", [NewMessage(role="user", id="m1", content="hi")])
    await core.records.edit("ses_1", "m1", {"content": "ho"}, Request(key="k"))
    await core.records.put_part("ses_1", "m1", "p1", {"type": "text", "text": "x"})
    await core.documents.change("ses_1", "context", {"working_directory": "/w"})
    base = (await core.documents.read("ses_1", "context")).version
    await core.documents.change("ses_1", "context", {"working_directory": "/v"})
    late = Request(base=base)
    await core.documents.change("ses_1", "context", {"working_directory": "/u"}, late)
    blocks = BlockStore(core.redis, core.keys)
    assert await blocks.put("ses_1", pack(await blocks.oldest("ses_1", 2)))
    await core.sessions.send_live("ses_1", {"typing": True})
    await core.sessions.delete("ses_2")
    await core.archiving.archive("ses_3", idle_seconds=0)
    await core.store.beat("here", 1_000, 500)
    await LeaseStore(core.redis, core.keys, 1_000).ask("acquire", "ses_1", "oc-1", "here")
    await PresenceStore(core.redis, core.keys, 1_000).announce("ses_1", "oc-1", About("here", ""))
    answer = Answer(CacheCall(tool="read", path="a.py"), "here", "text")
    caches = CacheStore(core.redis, core.keys, life_ms=60_000, limit_bytes=10_000)
    await caches.put("ses_1", key_of(answer.call), "d1", answer)
    await core.redis.hset(core.keys.writers, "journal", "i 1")  # see store.watermarks
    await OpencodeStore(core.redis, core.keys, core.store.recall).beat({"oc-1": b"{}"})
    use = UseStore(core.redis, core.keys)
    use.note_read("ses_1", 1_000)
    await use.settle()
    await JanitorStore(core.redis, core.keys, 1_000).begin("here")
    await until(lambda: not core.store._committer._lanes)
