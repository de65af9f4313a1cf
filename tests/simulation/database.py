"""A model of Redis's data and of the commands that sessiond uses; scripts run in a real Lua.

`tests/simulation/test_database.py` compares it with real servers, command by command.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable
from functools import cache
from hashlib import sha1
from itertools import takewhile
from typing import Any

from lupa.lua51 import LuaRuntime

Command = list[bytes]
Reply = Any
"""None, a number, bytes, a `Status`, a `Refusal`, or a list of replies."""

_WRITES = frozenset(b"HSET HDEL DEL XADD XDEL ZADD ZREM ZREMRANGEBYSCORE PEXPIRE FLUSHALL".split())
_GROWS = frozenset((b"HSET", b"XADD", b"ZADD"))


class Status(bytes):
    """A simple string, such as OK."""


class Refusal(Exception):
    """An error reply."""


class _Stream:
    """Entries by id, which only grows."""

    def __init__(self) -> None:
        self.ids: list[tuple[int, int]] = []
        self.fields: dict[tuple[int, int], list[bytes]] = {}
        self.last = (0, 0)

    def between(self, first: bytes, last: bytes) -> list[tuple[int, int]]:
        begin = bisect_left(self.ids, _stream_id(first, 0))
        return self.ids[begin : bisect_right(self.ids, _stream_id(last, 2**63))]

    def entry(self, place: tuple[int, int]) -> list[Any]:
        return [b"%d-%d" % place, list(self.fields[place])]


class _Members(dict[bytes, int]):
    """A sorted set: its members and their scores."""


class Database:
    """One server's data.

    Args:
        now: seconds, as TIME and expiry see them.
        publish: takes a channel and a message; returns how many heard it.
        info: returns what the server says of itself.
    """

    def __init__(
        self,
        now: Callable[[], float],
        publish: Callable[[bytes, bytes], int] = lambda *_: 0,
        info: Callable[[], bytes] = lambda: b"",
    ) -> None:
        self.is_full = False
        """Whether it refuses what takes memory."""
        self.log: list[list[Command]] = []
        """Every write so far, in groups that were made at one moment: its append-only file."""
        self._now, self._publish, self._info = now, publish, info
        self._keys: dict[bytes, Any] = {}
        self._scripts: set[bytes] = set()
        self._group: list[Command] = []

    def execute_together(self, commands: list[Command]) -> list[Reply]:
        """Execute commands at one moment."""
        replies = [self._reply(command) for command in commands]
        self._end_group()
        return replies

    def go_back(self, length: int) -> None:
        """Be as after so many groups of the log."""
        log, self.log = self.log[:length], []
        self._keys, is_full, self.is_full = {}, self.is_full, False
        for group in log:
            for command in group:
                self._call(command)
            self._end_group()
        self.is_full = is_full

    def forget_scripts(self) -> None:
        """Know no script any more, as after a restart."""
        self._scripts = set()

    def _end_group(self) -> None:
        if self._group:
            self.log.append(self._group)
            self._group = []

    def _reply(self, command: Command) -> Reply:
        try:
            return self._call(command)
        except Refusal as refusal:
            return refusal

    def _call(self, command: Command) -> Reply:
        name = command[0].upper()
        does = getattr(self, f"_do_{name.decode().lower()}", None)
        if does is None:
            raise Refusal(f"ERR unknown command '{name.decode()}'")
        if self.is_full and name in _GROWS:
            raise Refusal("OOM command not allowed when used memory > 'maxmemory'.")
        if name in _WRITES:
            self._group.append(command)
        return does(*command[1:])

    def _value(self, key: bytes, kind: type[Any]) -> Any:
        value = self._keys.get(key)
        if value is None:
            return kind()
        if type(value) is not kind:
            raise Refusal("WRONGTYPE Operation against a key holding the wrong kind of value")
        return value

    def _put(self, key: bytes, value: Any) -> None:
        self._keys[key] = value

    def _remove(self, key: bytes, kind: type[Any], names: Iterable[bytes]) -> int:
        """Take names out of a hash or a sorted set; what is empty then is gone."""
        value = self._value(key, kind)
        removed = sum(value.pop(name, None) is not None for name in names)
        if not value:
            self._keys.pop(key, None)
        return removed

    # Keys and the server

    def _do_ping(self) -> Reply:
        return Status(b"PONG")

    def _do_info(self, *_sections: bytes) -> Reply:
        return self._info()

    def _do_time(self) -> Reply:
        seconds = self._now()
        return [b"%d" % int(seconds), b"%d" % int(seconds % 1 * 1_000_000)]

    def _do_publish(self, channel: bytes, message: bytes) -> Reply:
        return self._publish(channel, message)

    def _do_flushall(self) -> Reply:
        self._keys = {}
        return Status(b"OK")

    def _do_exists(self, *keys: bytes) -> Reply:
        return sum(key in self._keys for key in keys)

    def _do_del(self, *keys: bytes) -> Reply:
        return sum(self._keys.pop(key, None) is not None for key in keys)

    # Hashes

    def _do_hset(self, key: bytes, *pairs: bytes) -> Reply:
        fields = self._value(key, dict)
        before = len(fields)
        fields.update(zip(pairs[::2], pairs[1::2], strict=True))
        self._put(key, fields)
        return len(fields) - before

    def _do_hget(self, key: bytes, field: bytes) -> Reply:
        return self._value(key, dict).get(field)

    def _do_hmget(self, key: bytes, *names: bytes) -> Reply:
        fields = self._value(key, dict)
        return [fields.get(name) for name in names]

    def _do_hgetall(self, key: bytes) -> Reply:
        return [each for pair in self._value(key, dict).items() for each in pair]

    def _do_hexists(self, key: bytes, field: bytes) -> Reply:
        return int(field in self._value(key, dict))

    def _do_hlen(self, key: bytes) -> Reply:
        return len(self._value(key, dict))

    def _do_hdel(self, key: bytes, *names: bytes) -> Reply:
        return self._remove(key, dict, names)

    def _do_hscan(self, key: bytes, _cursor: bytes, *options: bytes) -> Reply:
        named = dict(zip(options[::2], options[1::2], strict=True))
        prefix = named.get(b"MATCH", b"*").rstrip(b"*")
        fields = self._value(key, dict)
        found = [each for pair in fields.items() if pair[0].startswith(prefix) for each in pair]
        return [b"0", found]

    # Streams

    def _do_xadd(self, key: bytes, wanted: bytes, *fields: bytes) -> Reply:
        stream = self._value(key, _Stream)
        first, _, second = wanted.partition(b"-")
        number = int(first)
        if second == b"*":
            place = (number, stream.last[1] + 1 if stream.last[0] == number else 0)
        else:
            place = (number, int(second))
        if place <= stream.last:
            raise Refusal(
                "ERR The ID specified in XADD is equal or smaller than the target stream top item"
            )
        stream.ids.append(place)
        stream.fields[place], stream.last = list(fields), place
        self._put(key, stream)
        return b"%d-%d" % place

    def _do_xlen(self, key: bytes) -> Reply:
        return len(self._value(key, _Stream).ids)

    def _do_xrange(self, key: bytes, first: bytes, last: bytes, *count: bytes) -> Reply:
        stream = self._value(key, _Stream)
        if count == () and first == last and b"-" in first[1:]:  # one entry, as scripts ask
            place = _stream_id(first, 0)
            return [stream.entry(place)] if place in stream.fields else []
        found = stream.between(first, last)
        return [stream.entry(place) for place in (found[: int(count[1])] if count else found)]

    def _do_xrevrange(self, key: bytes, last: bytes, first: bytes, *count: bytes) -> Reply:
        stream = self._value(key, _Stream)
        found = stream.between(first, last)[::-1]
        return [stream.entry(place) for place in (found[: int(count[1])] if count else found)]

    def _do_xdel(self, key: bytes, *ids: bytes) -> Reply:
        stream = self._value(key, _Stream)
        removed = [place for each in ids if (place := _stream_id(each, 0)) in stream.fields]
        for place in removed:
            stream.ids.remove(place)
            del stream.fields[place]
        return len(removed)

    # Sorted sets, of whole numbers

    def _do_zadd(self, key: bytes, *given: bytes) -> Reply:
        members = self._value(key, _Members)
        options = list(takewhile((b"XX", b"NX", b"GT").__contains__, given))
        added = 0
        pairs = given[len(options) :]
        for score, member in zip(pairs[::2], pairs[1::2], strict=True):
            is_new = member not in members
            if (b"XX" in options and is_new) or (b"NX" in options and not is_new):
                continue
            number = int(float(score))
            if b"GT" in options and not is_new and number <= members[member]:
                continue
            members[member] = number
            added += is_new
        if members:
            self._put(key, members)
        return added

    def _do_zrem(self, key: bytes, *names: bytes) -> Reply:
        return self._remove(key, _Members, names)

    def _do_zcard(self, key: bytes) -> Reply:
        return len(self._value(key, _Members))

    def _do_zrange(self, key: bytes, first: bytes, last: bytes, *options: bytes) -> Reply:
        ranked: list[tuple[int, bytes]] = []
        for member, score in self._value(key, _Members).items():
            insort(ranked, (score, member))
        end = int(last)
        chosen = ranked[int(first) : None if end == -1 else end + 1]
        if options:
            return [each for score, member in chosen for each in (member, b"%d" % score)]
        return [member for _, member in chosen]

    def _do_zremrangebyscore(self, key: bytes, least: bytes, most: bytes) -> Reply:
        members = self._value(key, _Members)
        old = [member for member, score in members.items() if float(least) <= score <= float(most)]
        return self._remove(key, _Members, old) if old else 0

    # Scripts

    def _do_eval(self, text: bytes, count: bytes, *rest: bytes) -> Reply:
        self._scripts.add(sha1(text, usedforsecurity=False).hexdigest().encode())
        return self._run(text, int(count), rest)

    def _do_evalsha(self, digest: bytes, count: bytes, *rest: bytes) -> Reply:
        if digest not in self._scripts:
            raise Refusal("NOSCRIPT No matching script.")
        return self._run(_texts[digest], int(count), rest)

    def _run(self, text: bytes, count: int, rest: tuple[bytes, ...]) -> Reply:
        return _lua().run(text, rest[:count], rest[count:], self._call)


_texts: dict[bytes, bytes] = {}


class _Lua:
    """One interpreter for all databases: scripts keep nothing in it."""

    def __init__(self) -> None:
        self._runtime = LuaRuntime(encoding=None, unpack_returned_tuples=False)
        self._call: Callable[[Command], Reply]
        self._functions: dict[bytes, Any] = {}
        prepare = self._runtime.eval(
            b"function(call, encode)\n"
            b"  redis = { call = call, error_reply = function(text) return { err = text } end }\n"
            b"  cjson = { encode = encode }\n"
            b"end"
        )
        prepare(self._from_script, lambda text: json.dumps(text.decode()).encode())
        self._set = self._runtime.eval(
            b"function(keys, arguments) KEYS, ARGV = keys, arguments end"
        )

    def run(
        self,
        text: bytes,
        keys: tuple[bytes, ...],
        arguments: tuple[bytes, ...],
        call: Callable[[Command], Reply],
    ) -> Reply:
        function = self._functions.get(text)
        if function is None:
            function = self._functions[text] = self._runtime.eval(b"function() " + text + b"\nend")
            _texts[sha1(text, usedforsecurity=False).hexdigest().encode()] = text
        self._call = call
        self._set(self._runtime.table(*keys), self._runtime.table(*arguments))
        return self._from_lua(function())

    def _from_script(self, *arguments: Any) -> Any:
        command = [each if type(each) is bytes else b"%d" % each for each in arguments]
        return self._to_lua(self._call(command))

    def _to_lua(self, reply: Reply) -> Any:
        if reply is None:
            return False
        if isinstance(reply, list):
            return self._runtime.table(*[self._to_lua(each) for each in reply])
        return reply

    def _from_lua(self, value: Any) -> Reply:
        if value is None or value is False:
            return None
        if value is True:
            return 1
        if isinstance(value, int | float):
            return int(value)
        if isinstance(value, bytes):
            return value
        if value[b"err"] is not None:
            raise Refusal(value[b"err"].decode())
        return [self._from_lua(value[place]) for place in range(1, len(value) + 1)]


@cache
def _lua() -> _Lua:
    return _Lua()


def _stream_id(text: bytes, sequence: int) -> tuple[int, int]:
    """Return an id; a bound without a sequence takes the given one."""
    if text == b"-":
        return (0, 0)
    if text == b"+":
        return (2**63, 2**63)
    first, _, second = text.partition(b"-")
    return (int(first), int(second) if second else sequence)
