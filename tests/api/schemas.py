"""As much of JSON Schema as msgspec writes."""

from __future__ import annotations

import re
from typing import Any

TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
KEYWORDS = {
    "$ref", "type", "properties", "required", "additionalProperties", "items", "enum", "default",
    "title", "description", "pattern", "format", "anyOf", "minLength", "maxLength", "minItems",
    "maxItems", "minimum", "maximum",
}  # fmt: skip

Schema = dict[str, Any]


def assert_conforms(value: Any, schema: Schema, components: Schema, at: str = "$") -> None:
    """Hold a value against a schema.

    Args:
        value: decoded JSON.
        schema: what it should be.
        components: the schemas that others refer to, by name.
        at: where the value stands, for the message.
    """
    if "$ref" in schema:
        schema = components[schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        choices = schema["anyOf"]
        assert any(_fits(value, choice, components, at) for choice in choices), (at, value)
    if "type" in schema:
        assert isinstance(value, TYPES[schema["type"]]), (at, value)
    if "enum" in schema:
        assert value in schema["enum"], (at, value)
    match value:
        case str():
            assert re.search(schema.get("pattern", ""), value), (at, value)
            assert len(value) <= schema.get("maxLength", len(value)), at
            assert len(value) >= schema.get("minLength", 0), at
        case list():
            assert len(value) <= schema.get("maxItems", len(value)), at
            for index, item in enumerate(value):
                assert_conforms(item, schema.get("items", {}), components, f"{at}[{index}]")
        case dict():
            _object_conforms(value, schema, components, at)


def _fits(value: Any, schema: Schema, components: Schema, at: str) -> bool:
    try:
        assert_conforms(value, schema, components, at)
    except AssertionError:
        return False
    return True


def _object_conforms(value: Schema, schema: Schema, components: Schema, at: str) -> None:
    known, others = schema.get("properties", {}), schema.get("additionalProperties", {})
    assert set(schema.get("required", [])) <= set(value), (at, value)
    for name, item in value.items():
        assert name in known or others is not False, f"{at}.{name} is not described"
        inner = known.get(name, others if isinstance(others, dict) else {})
        assert_conforms(item, inner, components, f"{at}.{name}")
