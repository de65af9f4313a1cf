"""The OpenAPI document: valid, complete, and true of what the daemon really answers.

That every answer of the other tests is documented is checked where they get it: see
`tests.api.client.assert_documented`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sessiond import __version__
from sessiond.api.routes import EVENT_STREAM, Route
from sessiond.model import Problem
from tests.api.client import ROUTES, Client, assert_documented, filled, name_of
from tests.api.schemas import KEYWORDS, TYPES, assert_conforms
from tests.api.wire import PROBLEM, Answer, assert_problem
from tests.opencode.tables import add_session, make_database

PYTHON = Path(os.__file__).parent
METHODS = {"get", "put", "post", "delete", "patch"}


@pytest.fixture(scope="module")
def document(client: Client) -> dict[str, Any]:
    answer = client.call("GET", "/openapi.json")
    assert answer.header("content-type") == "application/json"
    return dict(answer.json)


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield path, method and description of every operation."""
    for path, item in document["paths"].items():
        assert set(item) <= METHODS
        for method, operation in item.items():
            yield path, method, operation


def schemas_in(node: Any) -> Iterator[dict[str, Any]]:
    """Yield every schema below a node of the document."""
    if isinstance(node, dict):
        if isinstance(node.get("schema"), dict):
            yield from subschemas(node["schema"])
        for value in node.values():
            yield from schemas_in(value)
    elif isinstance(node, list):
        for value in node:
            yield from schemas_in(value)


def subschemas(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a schema and those inside it."""
    yield schema
    inner = [*schema.get("properties", {}).values(), *schema.get("anyOf", [])]
    inner += [schema[name] for name in ("items", "additionalProperties") if name in schema]
    for each in inner:
        if isinstance(each, dict):
            yield from subschemas(each)


def test_it_is_openapi_3_1(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1.")
    assert {"openapi", "info", "paths", "components", "security"} == set(document)
    assert document["info"]["title"]
    assert document["info"]["version"] == __version__
    assert set(document["components"]) <= {"schemas", "securitySchemes"}
    for name in document["components"]["schemas"]:
        assert re.fullmatch(r"[A-Za-z0-9._-]+", name)
    for requirement in document["security"]:
        assert set(requirement) <= set(document["components"]["securitySchemes"])


def test_it_has_every_route_and_nothing_else(document: dict[str, Any]) -> None:
    described = {(method.upper(), path) for path, method, _ in operations(document)}
    assert described == {(route.method, route.path) for route in ROUTES}
    assert len(ROUTES) == len(described), "a route stands twice"


def test_every_operation_is_complete(document: dict[str, Any]) -> None:
    ids = []
    for path, _, operation in operations(document):
        ids.append(operation["operationId"])
        assert operation["summary"]
        named = {each["name"] for each in operation["parameters"] if each["in"] == "path"}
        assert named == set(re.findall(r"\{(\w+)\}", path))
        for parameter in operation["parameters"]:
            assert parameter["in"] in {"path", "query", "header"}
            assert parameter.get("required", False) == (parameter["in"] == "path")
            assert parameter["schema"]
        places = [(each["in"], each["name"].lower()) for each in operation["parameters"]]
        assert len(places) == len(set(places))
        for status, response in operation["responses"].items():
            assert re.fullmatch(r"[1-5]\d\d|default", status)
            assert response["description"]
        default = operation["responses"]["default"]["content"]
        assert list(default) == [PROBLEM]
        assert default[PROBLEM]["schema"] == {"$ref": "#/components/schemas/Problem"}
    assert len(ids) == len(set(ids))


def test_every_schema_is_one_and_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    components = document["components"]["schemas"]
    everything = [*schemas_in(document["paths"])]
    for schema in components.values():
        everything += subschemas(schema)
    used = set()
    for schema in everything:
        assert set(schema) <= KEYWORDS, schema
        assert schema.get("type", "object") in TYPES
        assert set(schema.get("required", [])) <= set(schema.get("properties", {}))
        if "pattern" in schema:
            re.compile(schema["pattern"])
        if "$ref" in schema:
            assert schema["$ref"].startswith("#/components/schemas/")
            used.add(schema["$ref"].rpartition("/")[2])
    assert used == set(components), "a component is missing, or nobody uses it"


@pytest.mark.parametrize("route", ROUTES, ids=name_of)
def test_parameters_and_bodies_are_those_of_the_route(
    document: dict[str, Any], route: Route
) -> None:
    operation = document["paths"][route.path][route.method.lower()]
    for place, names in (("query", route.query), ("header", route.headers)):
        told = {each["name"] for each in operation["parameters"] if each["in"] == place}
        assert told == set(names)
    assert ("requestBody" in operation) == (route.body is not None)
    if route.body is not None:
        assert operation["requestBody"]["required"] is True
        assert list(operation["requestBody"]["content"]) == ["application/json"]


def test_patterns_of_parameters_refuse_what_the_daemon_refuses(
    client: Client, document: dict[str, Any], session: str
) -> None:
    names = {"a", "A-b_c", "0", "a" * 64, "a" * 65, "a.b", "-a", "_a", "a" * 128, "a" * 129}
    for path, method, operation in operations(document):
        if method != "get" or path.endswith("{document}"):
            continue
        for parameter in operation["parameters"]:
            if parameter["in"] != "path":
                continue
            for name in names:
                fits = bool(re.search(parameter["schema"]["pattern"], name))
                known = {"session_id": session.rpartition("/")[2], parameter["name"]: name}
                route = next(each for each in ROUTES if (each.path, each.method) == (path, "GET"))
                answer = client.call("GET", filled(route, **known))
                assert fits == (answer.status != 400), (path, parameter["name"], name)


def conflict(client: Client, session: str) -> str:
    """Change a field twice from one version, and return the number of the conflict."""
    path = f"{session}/context"
    base = client.call("GET", path).header("etag")
    for value in ("/theirs", "/ours"):
        patch = {"working_directory": value}
        answer = client.call("PATCH", path, patch, Sessiond_Base=base)
    return answer.header("sessiond-conflicts")


def cached(client: Client, session: str, call: dict[str, Any]) -> str:
    """Cache an answer about a file that nobody changes, and return its key."""
    lookup = {"root": str(PYTHON), "calls": [call]}
    (missed,) = client.call("POST", f"{session}/cache/lookup", lookup).json["answers"]
    body = {"root": str(PYTHON), "call": call, "stamp": missed["stamp"], "value": "text"}
    assert client.call("PUT", f"{session}/cache/{missed['key']}", body).json["stored"]
    return str(missed["key"])


def example(client: Client, session: str, route: Route, database: Path) -> Answer:
    """Return a real answer of a route."""
    name = session.rpartition("/")[2]
    attachment = {
        "version": "1.18.33",
        "plugin": "0.1.0",
        "pid": 1,
        "database": str(database),
        "project_id": f"project-{name}",
        "directory": "/home/dev/proj",
        "worktree": "/home/dev/proj",
    }
    if "/opencode" in route.path:
        add_session(make_database(database), name, f"project-{name}", 1_800_000_000_000)
        client.call("PUT", "/v1/opencode/instances/oc-1", attachment)
    call = {"tool": "cat", "path": "os.py"}
    bodies = {
        "/v1/sessions": {"title": "example"},
        "/messages": {"role": "user"},
        "/live": {"typing": True},
        "/resolution": {"take": "theirs"},
        "/{message_id}": {"content": "edited"},
        "/{part_id}": {"type": "text"},
        "/{document}": {},
        "/{user_id}/preferences": {"theme": "dark"},
        "/v1/config": {},
        "/presence/{instance}": {"active_files": ["README.md"]},
        "/{instance}": attachment,
        "/{instance}/events": {"events": []},
        "/applied": {"batch": 1, "outcome": "held"},
        "/turns": {"session_id": name, "wait_seconds": 0},
        "/sharing": {"shared": False},
        "/v1/scan": {"session_ids": [name]},
        "/repair": {"apply": True},
        "/cache/lookup": {"root": str(PYTHON), "calls": [call]},
        "/cache/invalidate": {"paths": ["os.py"]},
        "/cache/{key}": {"root": str(PYTHON), "call": call, "stamp": "", "value": "text"},
    }
    body = next((bodies[end] for end in bodies if route.path.endswith(end)), None)
    if route.method == "DELETE" and route.path.endswith("{part_id}"):
        client.call("PUT", f"{session}/messages/first/parts/p", {"type": "text"})
    number = conflict(client, session) if "{number}" in route.path else ""
    key = cached(client, session, call) if "{key}" in route.path else ""
    path = filled(route, session_id=name, message_id="first", part_id="p", number=number, key=key)
    if route.method == "GET" and route.path.endswith("{key}"):
        path += f"?root={PYTHON}"
    if route.path == "/v1/redis":
        path += "?key=sessiond:sessions"
    if route.path.endswith("/archive"):
        path += "?idle_seconds=0"
    return client.call(route.method, path, body if route.body else None)


@pytest.mark.parametrize("route", ROUTES, ids=name_of)
def test_a_real_answer_is_of_the_status_and_shape_that_are_described(
    client: Client, document: dict[str, Any], session: str, route: Route, tmp_path: Path
) -> None:
    answer = example(client, session, route, tmp_path / "opencode.db")
    assert answer.status == route.status, answer
    assert answer.header("content-type") == (
        route.media_type if route.answer or answer.body else ""
    )
    content = document["paths"][route.path][route.method.lower()]["responses"][str(route.status)]
    if route.answer is None:
        assert "content" not in content
        return
    schema = content["content"][route.media_type]["schema"]
    if route.media_type != EVENT_STREAM:
        assert_conforms(answer.json, schema, document["components"]["schemas"])
        kind = msgspec.json.decode(answer.body, type=route.answer, strict=True)
        assert msgspec.to_builtins(kind) == msgspec.to_builtins(kind)


def test_a_real_problem_is_of_the_shape_that_is_described(
    client: Client, document: dict[str, Any]
) -> None:
    components = document["components"]["schemas"]
    for answer in (
        client.call("GET", "/v1/sessions/none"),
        client.call("GET", "/v1/none"),
        client.call("PATCH", "/v1/health", {}),
        client.call("POST", "/v1/sessions", b"{"),
    ):
        assert_conforms(answer.json, components["Problem"], components)
        msgspec.json.decode(answer.body, type=Problem)
        assert_problem(answer)


def test_an_answer_that_is_not_described_would_be_noticed(document: dict[str, Any]) -> None:
    json = [("content-type", "application/json")]
    for method, path, answer in (
        ("GET", "/v1/health", Answer(203, json, b"{}")),
        ("GET", "/v1/health", Answer(404, json, b"{}")),
        ("GET", "/v1/none", Answer(200, json, b"{}")),
        ("GET", "/v1/health", Answer(200, [("content-type", "text/html")], b"")),
        ("POST", "/v1/sessions/s/live", Answer(202, json, b"{}")),
    ):
        with pytest.raises(AssertionError):
            assert_documented(document, method, path, answer)
    with pytest.raises(msgspec.ValidationError):
        assert_documented(document, "GET", "/v1/health", Answer(200, json, b"{}"))


def test_a_readiness_that_is_missing_is_described(document: dict[str, Any]) -> None:
    """It is no problem document, and so not the default answer."""
    responses = document["paths"]["/v1/ready"]["get"]["responses"]
    content = responses.get("503", responses["default"])["content"]
    assert list(content) == ["application/json"]
