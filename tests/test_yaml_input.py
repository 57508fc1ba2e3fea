"""The YAML reader: what it reads, what it refuses, and that nothing else ever comes out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.yaml_input import (
    DEPTH_MAX,
    SIZE_MAX_BYTES,
    Document,
    InputError,
    Problem,
    parse,
    path_text,
    read,
    scalar,
    shown,
)


def refused(content: bytes) -> list[Problem]:
    with pytest.raises(InputError) as caught:
        parse(content, "f.yaml")
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1", {"a": 1}),
        ("a: -1", {"a": -1}),
        ("a: 2.5", {"a": 2.5}),
        ("a: 64 GiB", {"a": "64 GiB"}),
        ("a: 75 %", {"a": "75 %"}),
        ("a: '5'", {"a": "5"}),
        ("a: yes", {"a": "yes"}),
        ("a: off", {"a": "off"}),
        ("a: true", {"a": True}),
        ("a:", {"a": None}),
        ("a: ''", {"a": ""}),
        ("a: null", {"a": None}),
        ("a: 1:30", {"a": "1:30"}),
        ("a: 0777", {"a": "0777"}),
        ("a: 2024-01-01", {"a": "2024-01-01"}),
        ("a: 1e5", {"a": "1e5"}),
        ("a: .nan", {"a": ".nan"}),
        ("a: |\n  b\n  c\n", {"a": "b\nc\n"}),
        ("1: x", {"1": "x"}),
        ("<<: {a: 1}", {"<<": {"a": 1}}),
        ("- [1, {b: 2}]", [[1, {"b": 2}]]),
        ("\ufeffa: 1", {"a": 1}),
    ],
)
def test_plain_yaml_is_read(text: str, value: Any) -> None:
    assert parse(text.encode(), "f.yaml").data == value


def test_a_number_too_long_for_any_field_stays_text() -> None:
    assert parse(b"a: " + b"9" * 100_000, "f").data == {"a": "9" * 100_000}


def test_every_key_and_element_has_its_line() -> None:
    text = b"a: 1\n\nb:\n  - x: 1\n    y: 2\n  - {z: 3}\nc: [1,\n  2]\n"
    document = parse(text, "f.yaml")
    expected = {
        (): 1,
        ("a",): 1,
        ("b",): 3,
        ("b", 0): 4,
        ("b", 0, "x"): 4,
        ("b", 0, "y"): 5,
        ("b", 1): 6,
        ("b", 1, "z"): 6,
        ("c",): 7,
        ("c", 0): 7,
        ("c", 1): 8,
    }
    assert document.lines == expected
    assert document.line(("b", 0, "missing", "inside")) == 4


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        (b"", None, "is empty"),
        (b"# only a comment\n", None, "is empty"),
        (b"---\n", None, "is empty"),
        (b"a: 1\n---\nb: 2\n", 2, "more than one document"),
        (b"a: 1\nb: !!python/object:os.system x\n", 2, "tags"),
        (b"a: !local x\n", 1, "tags"),
        (b"a: ! x\n", 1, "tags"),
        (b"a: 1\nb: &x 1\nc: *x\n", 2, "anchors"),
        (b"a: 1\nb: *x\n", 2, "aliases"),
        (b"a: \xff\n", 1, "UTF-8"),
        ("a: 1".encode("utf-16"), 1, "UTF-8"),
        (b"a: 1\nb: \x00", 2, "not YAML"),
        (b"a: 1\n b: 2: 3\n", 2, "not YAML"),
        (b"a: {b: 1\n", 2, "not YAML"),
        (b"? [a]\n: b\n", 1, "a key must be plain text"),
        (b"%YAML 3.0\n---\na: 1\n", 1, "not YAML"),
    ],
)
def test_the_rest_of_yaml_is_refused(content: bytes, line: int | None, words: str) -> None:
    problem = refused(content)[0]
    assert words in problem.message
    assert problem.line == line


def test_all_duplicate_keys_are_reported() -> None:
    problems = refused(b"a: 1\nb: {c: 1, c: 2}\na: 3\n")
    assert [(problem.path, problem.line) for problem in problems] == [("b.c", 2), ("a", 3)]
    assert problems[1].message == "is given twice (first in line 1)"


def test_billion_laughs_costs_nothing() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    assert "anchors" in refused("\n".join(lines).encode())[0].message


@pytest.mark.parametrize("opening", [b"[", b"{", b"- ", b"a: [", b"? ", b"[[{a: "])
def test_deep_nesting_is_refused_at_once(opening: bytes) -> None:
    start = time.perf_counter()
    assert refused(opening * (SIZE_MAX_BYTES // len(opening)))
    assert time.perf_counter() - start < 5


def test_depth_up_to_the_limit_is_read() -> None:
    assert parse(b"[" * DEPTH_MAX + b"]" * DEPTH_MAX, "f").data
    assert "levels deep" in refused(b"[" * (DEPTH_MAX + 1) + b"]" * (DEPTH_MAX + 1))[0].message


def test_a_large_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "big.yaml"
    with path.open("wb") as stream:
        stream.truncate(100_000_000)
    start = time.perf_counter()
    with pytest.raises(InputError, match=r"big\.yaml: is larger than 1 MiB"):
        read(path)
    assert time.perf_counter() - start < 0.1


def test_what_is_no_readable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read(tmp_path / "missing.yaml")
    with pytest.raises(InputError, match="is not a file"):
        read(tmp_path)
    with pytest.raises(InputError, match="is not a file"):
        read(Path("/dev/zero"))
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "a\0b")


def test_one_line_per_problem_and_values_are_short() -> None:
    problems = [
        Problem("vms[2].memory", 7, shown("64 GiBB"), "must be a size"),
        Problem("name", None, shown("x" * 1000), "is long"),
        Problem("images[0]", 3, "", "is wrong", "images.yaml"),
    ]
    lines = str(InputError("f.yaml", problems)).splitlines()
    assert lines[0] == "f.yaml:7: vms[2].memory: '64 GiBB': must be a size"
    assert lines[1] == f"f.yaml: name: '{'x' * 60}'... (1000 characters): is long"
    assert lines[2] == "images.yaml:3: images[0]: is wrong"


def test_shown_values_never_break_a_line() -> None:
    for value in ("a\nb", "\x1b[31m", "\u2028", "a\nb" * 100, None, True, 5, [1], {"a": 1}):
        assert shown(value).isprintable()
    assert path_text(("a b\n", 0, "c")) == "'a b\\n'[0].c"


def test_an_included_value_keeps_its_own_lines() -> None:
    document = parse(b"images: other.yaml\nname: x\n", "f.yaml")
    document.include("images", parse(b"\nimages:\n  - a: 1\n", "other.yaml"))
    assert document.data == {"images": [{"a": 1}], "name": "x"}
    assert document.line(("images", 0, "a")) == 3
    assert document.line(("name",)) == 2
    assert document.included == {"images": "other.yaml"}


YAML_TOKENS = st.sampled_from(["a: ", "- ", "\n  ", "---\n", "...\n", "!!int ", "&x ", "*x", "? "])
YAML_CHARACTERS = st.sampled_from("ab1:-\n {}[],&*!?'\"|>#%~\t\\@\u2028")


def survives(content: bytes) -> None:
    try:
        document = parse(content, "f.yaml")
    except InputError as error:
        assert all(problem.message for problem in error.problems)
        assert str(error)
    else:
        assert isinstance(document, Document)


@given(st.lists(YAML_TOKENS | YAML_CHARACTERS, max_size=60).map("".join))
@settings(max_examples=500)
def test_fuzz_of_near_yaml(text: str) -> None:
    survives(text.encode())


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_fuzz_of_bytes(content: bytes) -> None:
    survives(content)


@given(st.text(max_size=200))
@settings(max_examples=300)
def test_fuzz_of_text(text: str) -> None:
    survives(text.encode("utf-8", "surrogatepass"))


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_characters="\ufeff"), max_size=20)
    | st.sampled_from(["yes", "1e5", "0777", "null", "1_000", "~", "1:30", "=", "<<", "1.5", ""]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=10,
)


@given(PLAIN)
@settings(max_examples=300)
def test_what_the_product_writes_it_reads_again(data: Any) -> None:
    # scenario.yaml of a run is written by PyYAML, which reads YAML 1.1 where this reads 1.2.
    text = yaml.safe_dump({"data": data, "end": 1}, sort_keys=False)
    assert parse(text.encode("utf-8"), "f").data == {"data": data, "end": 1}


def test_scalars_that_are_quoted_are_text() -> None:
    assert scalar("1", plain=False) == "1"
    assert scalar("1", plain=True) == 1
