"""Bytes that are not a saved host are refused with one error, whatever is wrong with them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import pytest
from crowded_hosts import SECOND, SIZE, starved
from hypothesis import given, settings
from hypothesis import strategies as some

from hostsim import invariants, packing, snapshot
from hostsim.packing import VERSION, PackingError
from hostsim.state import ARRAYS
from hostsim.units import MIB


@settings(max_examples=100)
@given(some.data())
def test_a_flipped_byte_is_found(data: some.DataObject) -> None:
    damaged = bytearray(starved())
    places = some.integers(0, len(damaged) - 1)
    for place in data.draw(some.lists(places, min_size=1, max_size=8, unique=True)):
        damaged[place] ^= data.draw(some.integers(1, 255))
    with pytest.raises(PackingError):
        snapshot.load(bytes(damaged))


@settings(max_examples=60)
@given(some.data())
def test_missing_and_added_bytes_are_found(data: some.DataObject) -> None:
    whole = starved()
    length = data.draw(some.integers(0, len(whole) - 1))
    for damaged in (whole[:length], whole[length + 1 :], whole + whole[:1], whole + whole):
        with pytest.raises(PackingError):
            snapshot.load(damaged)


@settings(max_examples=100)
@given(some.binary(max_size=300))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(PackingError):
        snapshot.load(data)


NUMBERS = some.integers(-(2**63), 2**64 - 1)
VALUES = some.recursive(
    some.none() | some.booleans() | NUMBERS | some.floats() | some.text() | some.binary(),
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(some.text(), inner, max_size=4),
    max_leaves=8,
)
KEYS = ("host", "config", "seed", "sample", "tick_ms", "images", "specs", "ranges", "arrays")


@settings(max_examples=100)
@given(some.dictionaries(some.sampled_from(KEYS) | some.text(), VALUES))
def test_another_body_with_a_right_digest_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(PackingError):
        snapshot.load(packing.seal(snapshot.KIND, body))


@settings(max_examples=100)
@given(some.data())
def test_a_body_with_one_other_value_is_refused_or_runs(data: some.DataObject) -> None:
    """Whatever the value: what is read without an error goes on without one."""
    body = body_of(starved())
    change_one_value(body, data)
    try:
        loaded = snapshot.load(packing.seal(snapshot.KIND, body))
    except PackingError:
        return
    loaded.advance(3 * SECOND)
    invariants.check(loaded.state)


def change_one_value(body: dict[str, Any], data: some.DataObject) -> None:
    """Somewhere in it, to anything that msgpack can hold."""
    at: Any = body
    while True:
        keys = sorted(at) if isinstance(at, dict) else range(len(at))
        key = data.draw(some.sampled_from(list(keys)))
        if not isinstance(at[key], dict | list) or len(at[key]) == 0:
            break
        at = at[key]
    at[key] = data.draw(VALUES)


def body_of(sealed: bytes) -> dict[str, Any]:
    """What is in the envelope; a new copy."""
    envelope = msgpack.unpackb(sealed)
    assert hashlib.sha256(envelope["body"]).digest() == envelope["sha256"]
    return dict(msgpack.unpackb(envelope["body"]))


Damage = Callable[[dict[str, Any]], object]


def field(name: str, value: int, array: str = "vms", at: int = 1) -> Damage:
    """A field of a row, the second VM's by default."""

    def damage(body: dict[str, Any]) -> None:
        packed = body["arrays"][array]
        rows = np.frombuffer(packed["data"], ARRAYS[array][0]).copy()
        rows[name][at] = value
        packed["data"] = rows.tobytes()

    return damage


def entry(array: str, value: int, at: int = 0) -> Damage:
    """One element of a plain array, in C order."""

    def damage(body: dict[str, Any]) -> None:
        packed = body["arrays"][array]
        elements = np.frombuffer(packed["data"], ARRAYS[array][0]).copy()
        elements[at] = value
        packed["data"] = elements.tobytes()

    return damage


def put(*path: Any) -> Damage:
    """The last of the path at the place that the rest names; `...` deletes it."""

    def damage(body: dict[str, Any]) -> None:
        *way, key, value = path
        at: Any = body
        for step in way:
            at = at[step]
        if value is ...:
            del at[key]
        else:
            at[key] = value

    return damage


def cut_to(array: str, n: int) -> Damage:
    """An array, shape and bytes, of its first n rows."""

    def damage(body: dict[str, Any]) -> None:
        packed = body["arrays"][array]
        row_bytes = len(packed["data"]) // packed["shape"][0]
        packed["shape"][0], packed["data"] = n, packed["data"][: n * row_bytes]

    return damage


HUGE = 2**62
DAMAGES: dict[str, Damage] = {
    "an unknown key": put("more", 1),
    "a missing key": put("seed", ...),
    "an unknown array": put("arrays", "more", {"shape": [0], "data": b""}),
    "a missing array": put("arrays", "indexed", ...),
    "an unknown field of an array": put("arrays", "indexed", "dtype", "<i8"),
    "an unknown option": put("config", "more", 1),
    "a wrong option": put("config", "cpus", 0),
    "an unknown field of a spec": put("specs", 0, "more", 1),
    "an unknown field of a VM": put("specs", 0, "config", "more", 1),
    "a spec of another VM": put("specs", 0, "vm", 7),
    "a spec of another size": put("specs", 0, "config", "memory", 2 * MIB),
    "a spec that is missing": put("specs", 0, ...),
    "a spec with text for a number": put("specs", 0, "image_range", "1"),
    "a spec with a number for a flag": put("specs", 0, "repeat", 1),
    "a program without rows": put("specs", 0, "program", {"shape": [0], "data": b""}),
    "specs that are no list": put("specs", 3),
    "an image that no VM has": put("images", 0, "footprint", 5 * MIB),
    "a seed that is text": put("seed", "1"),
    "a seed that is negative": put("seed", -1),
    "another seed": put("seed", 2),
    "a seed beyond 64 bits": put("seed", 2**64 - 1),
    "a flag for a number": put("sample", True),
    "no sampling factor": put("sample", 0),
    "no tick": put("tick_ms", 0),
    "a tick of a year": put("tick_ms", 366 * 86_400_000),
    "arrays that are a list": put("arrays", []),
    "a shape that is text": put("arrays", "page", "shape", "abc"),
    "a shape that is negative": put("arrays", "page", "shape", [-1]),
    "a shape of another dimension": put("arrays", "page", "shape", [32, 32]),
    "a shape beyond its bytes": put("arrays", "page", "shape", [5 * SIZE]),
    "bytes that are text": put("arrays", "page", "data", "abc"),
    "bytes that are missing": put("arrays", "page", "data", b""),
    "fewer pages": cut_to("page", 4 * SIZE - 1),
    "fewer contents": cut_to("content", 4 * SIZE - 1),
    "fewer references": cut_to("indexed", 1),
    "fewer rows": cut_to("vms", 4),
    "a table of stale hints of another size": cut_to("stale", 4),
    "a range of negative length": put("ranges", 0, 3, -1),
    "a range of another length": put("ranges", 0, 3, 3),
    "a range with another user": put("ranges", 0, 4, 5),
    "a range of another kind": put("ranges", 0, 0, 3),
    "a range that is short": put("ranges", 0, [0, 0]),
    "a VM's page beyond its state": entry("page", 7),
    "a page in another state": entry("page", 0),
    "a content beyond the host's": entry("content", 2**30 - 1, SIZE),
    "a content of another VM": entry("content", 1, SIZE + 1),
    "a reference too many": entry("indexed", -99),
    "a kind of no memory": entry("shared_kind", 1),
    "a page in the other memory": entry("page", 0x91),
    "fewer copy counters": cut_to("copied", 1),
    "a hint of no page": entry("indexed", 12345),
    "a hint of a page beyond": entry("indexed", 5 << 40 | 3),
    "an order that is not by id": entry("order", 2),
    "an order beyond the rows": entry("order", 99),
    "a sample beyond the VM": entry("sampled", SIZE),
    "a sample before the VM": entry("sampled", -1),
    "a stale hint on no content": entry("stale", 2**32 - 1),
    "other classes": entry("class_base", 1),
    "a program's row in another place": field("until_ms", 1, "programs", 0),
    "transmits without end": field("transmit_pages_per_s", HUGE, "programs", 0),
    "another seed of the state": field("seed", 2, "host", 0),
    "no such level": field("level", 5, "host", 0),
    "free frames": field("free", 999, "host", 0),
    "free high frames": field("highmem_free", 999, "host", 0),
    "another bound of low memory": field("highmem", 1, "host", 0),
    "another price of a copy": field("copy_ns", 1, "host", 0),
    "another choice of victims": field("remap", 0, "host", 0),
    "negative free frames": field("free", -1, "host", 0),
    "a tick of another length": field("tick_ms", 500, "host", 0),
    "a step longer than the tick": field("dt_ms", 2000, "host", 0),
    "no step": field("dt_ms", 0, "host", 0),
    "no pace": field("pace_ms", 0, "host", 0),
    "guests that give frames": field("intake", -1, "host", 0),
    "a sample of other size": field("sample_pages", 1000, "host", 0),
    "another threshold": field("goal", 3, "host", 0),
    "two VMs of one id": field("vm", 1),
    "no such VM": field("vm", -1),
    "pages in another place": field("base_slot", 3),
    "another size": field("size_slots", SIZE + 1),
    "a huge size": field("size_slots", HUGE),
    "no kernel": field("kernel", -1),
    "more pages of a state": field("resident", 999),
    "a row beyond the program": field("row", 3),
    "a program of other length": field("program_len", 9),
    "a pattern of no image": field("pattern", 4),
    "a pattern of another image": field("pattern", 1),
    "a base of other contents": field("image_base", 0),
    "another family": field("image_family", 99),
    "more samples than there are": field("samples", 1000),
    "memory in use beyond the VM": field("brk", SIZE + 1),
    "an active window beyond the VM": field("span", SIZE + 1),
    "an active set beyond the window": field("active", SIZE + 1),
    "a window that starts beyond": field("window", SIZE),
    "no window": field("span", 0),
    "a cursor beyond the VM": field("free_cursor", SIZE),
    "a stalled touch beyond the VM": field("stalled", 2 * SIZE + 1),
    "a gift beyond the VM": field("given", -1),
    "a scrubbed page beyond the VM": field("scrub_cursor", -1),
    "a cause that is none": field("cause", 9),
    "a carry of a whole life": field("touch_carry", HUGE),
    "a cycle that never started": field("cycle_start_ms", -HUGE),
    "a start before time": field("start_ms", -HUGE),
    "another limit": field("limit", 1),
    "a larger balloon": field("balloon_max", -1),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_wrong_body_with_a_right_digest_is_refused(name: str) -> None:
    body = body_of(starved())
    before = repr(body)
    DAMAGES[name](body)
    assert repr(body) != before
    with pytest.raises(PackingError):
        snapshot.load(packing.seal(snapshot.KIND, body))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("format", "esxsim-vm"),
        ("version", VERSION + 1),
        ("layout", "0" * 16),
        ("sha256", b"0" * 32),
    ],
)
def test_an_envelope_of_another_kind_or_release_is_refused(name: str, value: object) -> None:
    envelope = msgpack.unpackb(starved()) | {name: value}
    with pytest.raises(PackingError, match=name if name != "sha256" else "digest"):
        snapshot.load(msgpack.packb(envelope))


def test_extension_types_and_objects_are_not_read() -> None:
    """msgpack's only way to make objects; there is no reader for any of them."""
    body = body_of(starved())
    for value in (msgpack.ExtType(5, b"x"), msgpack.Timestamp(1)):
        body["seed"] = value
        with pytest.raises(PackingError):
            snapshot.load(packing.seal(snapshot.KIND, body))
