"""A model on loopback that does as the last user's text says.

It speaks OpenAI's chat completions, streamed, from threads of its own: it answers while a test
or its event loop is busy. Marks in the last user's text choose the reply:

| Mark | Reply |
|---|---|
| `TOOL:<command>` | a call of the tool `bash`, then text when its result is there |
| `TOOLX:<tool> {json}` | a call of any tool |
| `SLOW:<n>` | n pieces of text, `delay` seconds apart |
| `THINK` | reasoning, then text |
| none | `MOCK-REPLY[<number of messages>]: <the text>` |
"""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NAME = "mock-model"

_HELD_SECONDS = 60.0  # a gate that a test forgot opens by itself
_numbers = itertools.count(1)

Piece = dict[str, Any]


@dataclass(frozen=True)
class ModelRequest:
    """One request, as it came."""

    body: dict[str, Any]
    at: float = field(default_factory=time.time)

    @property
    def messages(self) -> list[dict[str, Any]]:
        return list(self.body.get("messages", []))

    @property
    def texts(self) -> list[tuple[str, str]]:
        """Role and text of each message, the system's left out."""
        return [(role, text) for role, text in self._texts() if role not in _SYSTEM]

    @property
    def said(self) -> list[str]:
        """The texts of the users, in their order."""
        return [text for role, text in self.texts if role == "user"]

    @property
    def last(self) -> str:
        """The last user's text: what chooses the reply."""
        said = self.said
        return said[-1] if said else ""

    @property
    def is_title(self) -> bool:
        """Whether opencode asks for a session's title, beside the turn."""
        return any("title generator" in text for role, text in self._texts() if role in _SYSTEM)

    @property
    def has_tool_result(self) -> bool:
        return bool(self.messages) and self.messages[-1]["role"] == "tool"

    def _texts(self) -> Iterator[tuple[str, str]]:
        return ((message["role"], _text(message.get("content"))) for message in self.messages)


class Gate:
    """Replies wait here until it is opened."""

    def __init__(self, containing: str, pieces: int) -> None:
        self.containing = containing
        self.pieces = pieces
        self._opened = threading.Event()
        self._held = 0
        self._lock = threading.Lock()

    @property
    def held(self) -> int:
        """How many replies have come this far, whether or not they still wait."""
        return self._held

    def open(self) -> None:
        self._opened.set()

    def passes(self) -> None:
        """Wait until the gate is open."""
        with self._lock:
            self._held += 1
        self._opened.wait(_HELD_SECONDS)


@dataclass
class _Failure:
    containing: str
    status: HTTPStatus
    times: int


class Model:
    """The model. `url` is the base of its API."""

    def __init__(self) -> None:
        self.delay = 0.1
        self._lock = threading.Lock()
        self._requests: list[ModelRequest] = []
        self._gates: list[Gate] = []
        self._failures: list[_Failure] = []
        model = self

        class Answering(_Answering):
            def decide(self, request: ModelRequest) -> HTTPStatus:
                return model._take(request)

            def pieces(self, request: ModelRequest) -> Iterator[Piece]:
                return model._reply(request)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def close(self) -> None:
        """Open all gates and stop."""
        for gate in self._gates:
            gate.open()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def turn_requests(self, containing: str = "") -> list[ModelRequest]:
        """Return the requests of turns so far, of those with a text of a user if one is given."""
        with self._lock:
            found = [request for request in self._requests if not request.is_title]
        return [r for r in found if not containing or any(containing in t for t in r.said)]

    def title_requests(self) -> list[ModelRequest]:
        """Return the requests for titles so far."""
        with self._lock:
            return [request for request in self._requests if request.is_title]

    def forget(self) -> None:
        """Begin to count anew."""
        with self._lock:
            self._requests.clear()

    def hold(self, containing: str = "", *, pieces: int = 0) -> Gate:
        """Hold the replies of turns from now on, until the gate is opened.

        Args:
            containing: what the last user's text must contain.
            pieces: how many pieces of the reply go out before it is held.
        """
        gate = Gate(containing, pieces)
        with self._lock:
            self._gates.append(gate)
        return gate

    @contextmanager
    def holding(self, containing: str = "", *, pieces: int = 0) -> Iterator[Gate]:
        """Hold the replies of turns within the block."""
        gate = self.hold(containing, pieces=pieces)
        try:
            yield gate
        finally:
            gate.open()

    def fail(self, containing: str = "", *, status: int = 400, times: int = 1) -> None:
        """Refuse the next requests of turns.

        opencode gives up at once after 400, and tries again after 429, 500 and 503.
        """
        with self._lock:
            self._failures.append(_Failure(containing, HTTPStatus(status), times))

    def _take(self, request: ModelRequest) -> HTTPStatus:
        """Write a request down and return what its answer begins with."""
        with self._lock:
            self._requests.append(request)
            if not request.is_title:
                for failure in self._failures:
                    if failure.times and failure.containing in request.last:
                        failure.times -= 1
                        return failure.status
        return HTTPStatus.OK

    def _reply(self, request: ModelRequest) -> Iterator[Piece]:
        """Yield the reply's pieces when they are due."""
        if request.is_title:
            yield {"content": f"Mock title: {request.last[:30]}"}
            return
        with self._lock:
            gates = [gate for gate in self._gates if gate.containing in request.last]
        slow = _SLOW.search(request.last) is not None and not request.has_tool_result
        count = 0
        for piece in _pieces(request):
            _pass(gates, count)
            yield piece
            count += 1
            if slow:
                time.sleep(self.delay)
        for gate in gates:
            if gate.pieces >= count:
                gate.passes()


_SYSTEM = ("system", "developer")
_TOOL = re.compile(r"TOOL:([^\n]+)")
_ANY_TOOL = re.compile(r"TOOLX:(\w+) (\{.*\})")
_SLOW = re.compile(r"SLOW:(\d+)")


def _pass(gates: list[Gate], count: int) -> None:
    for gate in gates:
        if gate.pieces == count:
            gate.passes()


def _pieces(request: ModelRequest) -> Iterator[Piece]:
    """Yield the deltas of a reply, the whole of it."""
    last = request.last
    asked = not request.has_tool_result and bool(request.body.get("tools"))
    if asked and (found := _TOOL.search(last)):
        yield {"content": "I will run a command."}
        arguments = {"command": found[1].strip(), "description": "mock tool call"}
        yield from _tool_call("bash", json.dumps(arguments))
    elif asked and (found := _ANY_TOOL.search(last)):
        yield from _tool_call(found[1], found[2])
    elif not request.has_tool_result and (found := _SLOW.search(last)):
        for number in range(int(found[1])):
            yield {"content": f"w{number} "}
    else:
        if "THINK" in last:
            yield {"reasoning_content": "let me think... "}
            yield {"reasoning_content": "done thinking."}
        text = f"MOCK-REPLY[{len(request.messages)}]: {last}"
        if request.has_tool_result:
            text = f"Tool said: {_text(request.messages[-1]['content'])[:80]}. {text}"
        for word in re.findall(r"\S+\s*", text):
            yield {"content": word}


def _tool_call(name: str, arguments: str) -> Iterator[Piece]:
    """Yield a tool call in the pieces in which models send it."""
    call = {"id": f"call_{next(_numbers)}", "type": "function"}
    middle = len(arguments) // 2
    begun = {"index": 0, **call, "function": {"name": name, "arguments": ""}}
    yield {"tool_calls": [begun]}
    for stretch in (arguments[:middle], arguments[middle:]):
        yield {"tool_calls": [{"index": 0, "function": {"arguments": stretch}}]}


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(piece.get("text", "") for piece in content)
    return str(content or "")


class _Answering(BaseHTTPRequestHandler):
    """One request of opencode: what to say comes from the model, how to say it stands here."""

    protocol_version = "HTTP/1.1"

    def decide(self, request: ModelRequest) -> HTTPStatus:
        raise NotImplementedError

    def pieces(self, request: ModelRequest) -> Iterator[Piece]:
        raise NotImplementedError

    def log_message(self, *_: Any) -> None:
        """Say nothing: `BaseHTTPRequestHandler` would write to standard error."""

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        request = ModelRequest(json.loads(self.rfile.read(length)))
        status = self.decide(request)
        if status != HTTPStatus.OK:
            self._refuse(status)
            return
        try:
            self._stream(request)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the turn was aborted

    def _refuse(self, status: HTTPStatus) -> None:
        body = json.dumps({"error": {"message": "the model was told to fail"}}).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, request: ModelRequest) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        reason = "stop"
        chunk = {
            "id": f"chatcmpl-{next(_numbers)}",
            "object": "chat.completion.chunk",
            "created": int(request.at),
            "model": NAME,
        }

        def send(delta: Piece, **more: Any) -> None:
            choice = {"index": 0, "delta": delta, "finish_reason": more.pop("finish_reason", None)}
            self._event(json.dumps(chunk | {"choices": [choice]} | more))

        send({"role": "assistant"})
        for piece in self.pieces(request):
            send(piece)
            reason = "tool_calls" if "tool_calls" in piece else reason
        prompt = 10 * len(request.messages)
        usage = {"prompt_tokens": prompt, "completion_tokens": 7, "total_tokens": prompt + 7}
        send({}, finish_reason=reason, usage=usage)
        self._event("[DONE]")

    def _event(self, data: str) -> None:
        self.wfile.write(f"data: {data}\n\n".encode())
        self.wfile.flush()
