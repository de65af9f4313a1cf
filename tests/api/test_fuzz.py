"""Thousands of random requests: none is answered with 5xx, none hangs, and the daemon lives on.

`SESSIOND_TEST_FUZZ_CASES` says how many, `SESSIOND_TEST_FUZZ_SEED` repeats a run.
"""

from __future__ import annotations

import os
import secrets
from collections import Counter
from random import Random

import msgspec
import pytest

from tests.api.client import Client
from tests.api.fuzzing import SESSIONS, Case, Fuzzer
from tests.api.watching import failures_in, open_files, peak_bytes
from tests.api.wire import (
    PATIENCE_SECONDS,
    Answer,
    Closed,
    assert_problem,
    connected,
    request_bytes,
)
from tests.daemons import RunningDaemon, wait_for

CASES = int(os.environ.get("SESSIOND_TEST_FUZZ_CASES", "2000"))
SEED = int(os.environ.get("SESSIOND_TEST_FUZZ_SEED") or secrets.randbits(32))

_UNFINISHED_SECONDS = 0.02
"""How long an answer to what may be half a request is waited for; without one we hang up."""
_SHOWN = 10


def answers_of(client: Client, case: Case, pieces: list[bytes]) -> list[Answer]:
    """Send a case and return what came; more than one answer if the bytes were more requests."""
    seconds = PATIENCE_SECONDS if case.whole else _UNFINISHED_SECONDS
    answers: list[Answer] = []
    with connected(client.socket, seconds=seconds) as wire:
        wire.send(*pieces)
        try:
            answers.append(wire.answer(case.method))
            if not case.whole:
                while True:
                    answers.append(wire.answer())
        except Closed:
            pass
        except TimeoutError:
            assert not case.whole, "no answer"
    assert answers or not case.whole, "closed without an answer"
    return answers


def fault(client: Client, case: Case, pieces: list[bytes], statuses: Counter[int]) -> str:
    """Say what is wrong with the answers to a case; "" if nothing is."""
    try:
        for answer in answers_of(client, case, pieces):
            statuses[answer.status] += 1
            assert answer.status < 500, answer.body[:300]
            assert answer.status != 101, "switched protocols"
            if answer.status >= 400 and case.method != "HEAD":
                assert_problem(answer)
            elif answer.status == 200 and case.whole and answer.body:
                msgspec.json.decode(answer.body)
    except (AssertionError, ValueError, UnicodeDecodeError) as error:
        return f"{str(error).splitlines()[0][:300]} ← {case.data[:500]!r}"
    return ""


def test_random_requests_are_answered_with_less_than_500_and_harm_nothing(
    daemon: RunningDaemon, client: Client
) -> None:
    print(f"seed {SEED}, {CASES} cases")  # noqa: T201 - pytest shows it when the test fails
    for name in SESSIONS:
        path = client.create(name)
        client.append(path, "m0")
    fuzzer = Fuzzer(Random(SEED))  # noqa: S311 - to be repeatable is the point
    statuses: Counter[int] = Counter()
    faults: dict[str, str] = {}
    for _ in range(CASES):
        case = fuzzer.case()
        if found := fault(client, case, fuzzer.pieces(case.data), statuses):
            faults.setdefault(found[:60], found)  # one example of each kind
    assert daemon.process
    assert daemon.process.poll() is None, "the daemon died"
    assert client.get("/v1/health") == {"status": "ok", "version": "0.1.0", "ready": True}
    shown = "\n".join([*faults.values(), *failures_in(daemon.log)][:_SHOWN])
    assert not shown, f"SESSIOND_TEST_FUZZ_SEED={SEED}\n{shown}"
    seen = set(statuses)
    is_tame = not {200, 400, 404, 405, 409, 415} <= seen or seen.isdisjoint({201, 202})
    assert not is_tame or CASES < 2000, f"tame: {statuses}"
    for name in SESSIONS:
        path = f"/v1/sessions/{name}"
        if client.call("GET", path).status == 410:
            continue  # a mutated request deleted it
        loaded = client.get(path)
        operations: list[dict[str, str]] = []
        while page := client.get(f"{path}/operations?after={len(operations)}")["operations"]:
            operations += page
        offsets = [int(each["position"].partition(":")[2]) for each in operations]
        assert offsets == list(range(1, len(operations) + 1))
        assert operations[-1]["position"] == loaded["position"]


def test_after_the_storm_nothing_of_it_is_left(daemon: RunningDaemon, client: Client) -> None:
    wait_for(lambda: client.get("/v1/status")["subscribers"] == 0)
    wait_for(lambda: open_files(daemon) < 120)
    assert peak_bytes(daemon) < 150 * 1024 * 1024


@pytest.mark.parametrize("size", [1, 7, 100])
def test_a_request_cut_anywhere_is_answered_whole_or_not_at_all(
    daemon: RunningDaemon, client: Client, size: int
) -> None:
    name = f"cut-{size}"
    path = client.create(name)
    body = b'{"role":"user","content":"' + b"x" * size + b'"}'
    data = request_bytes("POST", f"{path}/messages", body)
    for end in range(1, len(data), 3):
        with connected(client.socket) as wire:
            wire.send(data[:end])
    with connected(client.socket) as wire:
        wire.send(data)
        assert wire.answer().status == 201
    assert client.position(path).endswith(":2"), "a part of a request was carried out"
