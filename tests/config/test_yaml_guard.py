from __future__ import annotations

import time
from contextlib import suppress

import pytest

from sessiond.config.yaml_guard import LIMIT_BYTES, Place, read_yaml
from sessiond.errors import ConfigurationError


def refused(text: bytes | str) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        read_yaml(text, "sessions.yaml")
    return caught.value


def test_sections_lists_and_scalars_become_plain_values() -> None:
    document = read_yaml(b"redis:\n  url: ''\n  embedded: {port: 0}\nhosts: [a, b]\n", "x")
    assert document.value == {
        "redis": {"url": "", "embedded": {"port": 0}},
        "hosts": ["a", "b"],
    }


def test_an_empty_file_and_one_of_comments_are_nothing() -> None:
    assert read_yaml("", "x").value is None
    assert read_yaml("# nothing\n---\n", "x").value is None


def test_a_byte_order_mark_is_no_part_of_the_first_key() -> None:
    assert read_yaml(b"\xef\xbb\xbfa: 1", "x").value == {"a": 1}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("NO", "NO"),
        ("yes", "yes"),
        ("on", "on"),
        ("22:22", "22:22"),
        ("2026-01-01", "2026-01-01"),
        ("1_000", "1_000"),
        (".inf", ".inf"),
        (".NaN", ".NaN"),
        ("true", True),
        ("True", True),
        ("FALSE", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("42", 42),
        ("-7", -7),
        ("010", 10),
        ("0o17", 15),
        ("0xfF", 255),
        ("1.5", 1.5),
        ("-.5", -0.5),
        ("1e3", 1000.0),
        ("1.", 1.0),
        ("'42'", "42"),
        ('"true"', "true"),
        ("'~'", "~"),
        ("|\n  42\n", "42\n"),
        (">-\n  true\n", "true"),
        ("\u0661", "\u0661"),
    ],
)
def test_scalars_are_resolved_by_yaml_1_2(written: str, meant: object) -> None:
    document = read_yaml(f"a: {written}", "x")
    assert isinstance(document.value, dict)
    value = document.value["a"]
    assert value == meant
    assert type(value) is type(meant)


def test_a_key_is_found_by_its_path_line_and_column() -> None:
    document = read_yaml("# c\nredis:\n  url: x\n\n  hosts:\n    - a\n    -  b\n", "x")
    assert document.line(("redis",)) == (2, 1)
    assert document.line(("redis", "url")) == (3, 3)
    assert document.line(("redis", "hosts")) == Place(line=5, column=3)
    assert document.line(("redis", "hosts", 1)) == (7, 8)


def test_an_absent_key_is_where_its_section_is() -> None:
    document = read_yaml("a: 1\nredis:\n  url: x\n", "x")
    assert document.line(("redis", "nothing", "deeper")) == (2, 1)
    assert document.line(("nothing",)) == (1, 1)
    assert read_yaml("", "x").line(("a",)) == (1, 1)


def test_the_repr_of_a_document_does_not_show_its_values() -> None:
    assert "hunter2" not in repr(read_yaml("redis: {url: hunter2}", "x"))


@pytest.mark.parametrize(
    ("text", "detail", "hint"),
    [
        (
            "a: &x 1",
            "sessions.yaml, line 1, column 4: a: expected a value, found an anchor (&)",
            (
                "write the value out in full where it is used, "
                "or put a text that begins with this character in quotes"
            ),
        ),
        (
            "a:\n  b: *x",
            "sessions.yaml, line 2, column 6: a.b: expected a value, found an alias (*)",
            "write the value out in full, or put a text that begins with this character in quotes",
        ),
        (
            "a: !!python/object:os.system 1",
            "sessions.yaml, line 1, column 4: a: expected a value, found a tag (!)",
            "remove the tag, or put a text that begins with this character in quotes",
        ),
        (
            "a:\n  <<: {b: 1}",
            "sessions.yaml, line 2, column 3: a: expected a key, found a merge key (<<)",
            "write the keys out in full",
        ),
        (
            "a:\n  b: 1\n  c: 2\n  b: 3",
            (
                "sessions.yaml, line 4, column 3: a.b: expected each key once, "
                "found a second 'b' (the first is in line 2)"
            ),
            "keep one of the two",
        ),
        (
            "1: a",
            "sessions.yaml, line 1, column 1: expected a key that is text, found the number 1",
            "put the key in quotes if it is meant as text",
        ),
        (
            "a: {true: b}",
            "sessions.yaml, line 1, column 5: a: expected a key that is text, found true",
            "put the key in quotes if it is meant as text",
        ),
        (
            "? [a]\n: b",
            "sessions.yaml, line 1, column 3: expected a key that is text, found a list",
            "write a name before the ':'",
        ),
        (
            "{{a: b}: c}",
            "sessions.yaml, line 1, column 2: expected a key that is text, found a section",
            "write a name before the ':'",
        ),
        (
            "a: 1\n---\nb: 2",
            "sessions.yaml, line 2, column 1: expected one document, found a second one",
            "remove the '---' line and what follows",
        ),
        (
            "a: 1e999",
            (
                "sessions.yaml, line 1, column 4: a: expected a number of ordinary size, "
                "found a larger one"
            ),
            "use a smaller one",
        ),
        (
            "a: " + "9" * 5000,
            (
                "sessions.yaml, line 1, column 4: a: expected a number of ordinary size, "
                "found a larger one"
            ),
            "use a smaller one",
        ),
        (
            'a: "\\ud800"',
            (
                "sessions.yaml, line 1, column 4: a: expected text, "
                "found half a character (a surrogate)"
            ),
            r"remove the \u escape",
        ),
        (
            b"a: 1\nb: \xff",
            "sessions.yaml, line 2: expected UTF-8, found something else",
            "save the file as UTF-8",
        ),
        (
            "a: 1\nb: \ud800",
            "sessions.yaml, line 2: expected UTF-8, found something else",
            "save the file as UTF-8",
        ),
        (
            "a" * (LIMIT_BYTES + 1),
            "sessions.yaml: expected at most 65536 bytes, found more",
            "keep only sessiond's own options in this file",
        ),
        (
            "é" * (LIMIT_BYTES // 2 + 1),
            "sessions.yaml: expected at most 65536 bytes, found more",
            "keep only sessiond's own options in this file",
        ),
    ],
)
def test_what_the_guard_forbids_is_refused_with_a_remedy(
    text: bytes | str, detail: str, hint: str
) -> None:
    error = refused(text)
    assert error.detail == detail
    assert error.hint == hint


@pytest.mark.parametrize(
    ("text", "place", "found"),
    [
        ("a: b: c", "line 1, column 5", "a mistake: mapping values are not allowed here"),
        ("a:\n\tb: c", "line 2, column 1", r"found character '\t' that cannot start any token"),
        ("a: [b, c", "line 1, column 9", "expected ',' or ']', but got '<stream end>'"),
        ("a: 1\nb: \x00", "line 2, column 4", "a character that YAML does not allow"),
        ('a: "\\U00110000"', "line 1, column 1", "an escape or a number that YAML does not allow"),
        ('a: "\\UFFFFFFFF"', "line 1, column 1", "an escape or a number that YAML does not allow"),
        (f"%YAML 1.{'9' * 5000}\n--- a", "line 1, column 1", "an escape or a number"),
    ],
)
def test_what_is_not_yaml_is_refused_with_its_place(text: str, place: str, found: str) -> None:
    error = refused(text)
    assert error.detail.startswith(f"sessions.yaml, {place}: ")
    assert "expected YAML, found " in error.detail
    assert found in error.detail
    assert error.hint.startswith("correct this line: ")


@pytest.mark.parametrize(
    "text",
    [
        "redis: {url: !hunter2!x y}",
        "redis: {url: &hunter2 x}",
        "redis: {url: *hunter2 }",
        "redis:\n  url: redis://:hunter2@host: x",
        "redis:\n  url: 'redis://:hunter2@host",
        'redis:\n  url: "hunter2\\q"',
        "redis://:hunter2@host: 1\nredis://:hunter2@host: 1",
        "%TAG !hunter2! x\n%TAG !hunter2! x\n--- a",
    ],
)
def test_a_password_near_a_mistake_is_not_shown(text: str) -> None:
    error = refused(text)
    assert "hunter2" not in str(error)
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None


def test_32_levels_are_read_and_33_are_not() -> None:
    read_yaml("[" * 32 + "]" * 32, "x")
    error = refused("a: " + "[" * 32 + "]" * 32)
    assert error.detail.startswith("sessions.yaml, line 1, column 35: a[0][0][0][0][0]…: ")
    assert "expected at most 32 levels, found more" in error.detail


def test_2000_values_are_read_and_2001_are_not() -> None:
    assert read_yaml("[" + "1," * 1999 + "]", "x").value == [1] * 1999
    assert "expected at most 2000 keys and values" in refused("[" + "1," * 2000 + "]").detail


def test_64_kib_are_read() -> None:
    assert read_yaml(b"a" * LIMIT_BYTES, "x").value == "a" * LIMIT_BYTES


def test_a_file_name_cannot_write_to_the_terminal() -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_yaml("a: &x 1", "\x1b[31m\n.yaml")
    assert caught.value.detail.startswith(r"\x1b[31m\n.yaml, line 1")


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(f"k{n}: {{<<: [{'*a,' * 50}]}}\n" for n in range(300))


@pytest.mark.parametrize(
    "bomb",
    [
        LAUGHS,
        MERGES,
        *(bracket * 100_000 for bracket in ("[", "{", "- ", "? ", "[a,", "{a: ", "\n", "!", "&a ")),
        *(
            (fragment * LIMIT_BYTES)[:LIMIT_BYTES]
            for fragment in ("[", "{", "- ", "? ", "[a,", "{a: ", "[? ", "'a',", "a\n", "a: b\n")
        ),
        *((start + "\r~" * LIMIT_BYTES)[:LIMIT_BYTES] for start in ("", "a: '", "a: |\n")),
        "[" * 31 + "a," * 32_000,
        "".join(f"%TAG !{n}! x\n" for n in range(4000)) + "--- a",
    ],
    ids=lambda bomb: repr(bomb[:12]),
)
def test_a_bomb_is_over_within_a_second(bomb: str) -> None:
    started = time.thread_time()
    with suppress(ConfigurationError):
        read_yaml(bomb, "bomb.yaml")
    assert time.thread_time() - started < 1
