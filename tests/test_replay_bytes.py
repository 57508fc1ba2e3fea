"""Saved hosts and VMs that replay: what leads compiled code astray is refused on reading."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import pytest
from host_builders import make_host, make_spec, power_on, run
from hypothesis import given, settings
from hypothesis import strategies as some
from replay_builders import CONTENTS, make_replay

from hostsim import invariants, packing, replay, snapshot
from hostsim.packing import PackingError
from hostsim.records import VM
from hostsim.replay import EVENT, READ
from hostsim.state import ANON, FREE, KERNEL
from hostsim.units import MIB

A, F, K = int(ANON), int(FREE), int(KERNEL)
GOOD = make_replay([(K, 3), (A, 0)], [(5, 1, 2), (6, 0, READ)])


@pytest.mark.parametrize(
    ("field", "at", "value", "wrong"),
    [
        ("page", 1, 0, "boot"),
        ("at_ms", 0, 1, "boot"),
        ("at_ms", 2, 7, "times"),
        ("at_ms", 2, 0, "times"),
        ("page", 3, 2, "page"),
        ("page", 3, -1, "page"),
        ("word", 0, CONTENTS + 1, "contents"),
        ("word", 1, READ, "contents"),
        ("word", 2, CONTENTS + 1, "contents"),
    ],
)
def test_events_that_lead_astray_are_refused(field: str, at: int, value: int, wrong: str) -> None:
    replay.require_sound(GOOD)
    events = GOOD.events.copy()
    events[field][at] = value
    with pytest.raises(ValueError, match=f"wrong {wrong}"):
        replay.require_sound(replace(GOOD, events=events))


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"pages": 0}, "pages"),
        ({"pages": 5}, "pages"),
        ({"used": 3}, "pages"),
        ({"unmovable": 3}, "pages"),
        ({"contents": 1 << 28}, "contents"),
    ],
)
def test_numbers_that_lead_astray_are_refused(changes: dict[str, int], wrong: str) -> None:
    with pytest.raises(ValueError, match=f"wrong {wrong}"):
        replay.require_sound(replace(GOOD, **changes))
    spec = packing.pack_spec(replace(make_spec(1, MIB), replay=GOOD))
    spec["replay"] |= changes
    with pytest.raises(ValueError, match=f"wrong {wrong}"):
        packing.unpack_spec(spec)


@functools.cache
def saved() -> bytes:
    """A host 5 s old: a VM that replays nothing, and one that replayed three events of eight."""
    host = make_host(sharing={"enabled": True})
    later = [(1000 * s, s % 4, s % CONTENTS) for s in (1, 2, 4, 8, 9, 12, 13, 14)]
    what = make_replay([(K, 3), (A, 5), (A, 5), (F, 1)], later)
    power_on(host, make_spec(1, MIB), replace(make_spec(2, MIB), replay=what))
    run(host, 5000)
    assert host.state.vms[1].event == 4 + 3
    return snapshot.save(host)


def body_of(sealed: bytes) -> dict[str, Any]:
    return dict(msgpack.unpackb(msgpack.unpackb(sealed)["body"]))


def changed(array: str, dtype: np.dtype[Any], field: str, at: int, value: int) -> bytes:
    """The saved host with one field of one row of an array replaced."""
    body = body_of(saved())
    packed = body["arrays"][array]
    rows = np.frombuffer(packed["data"], dtype).copy()
    rows[field][at] = value
    packed["data"] = rows.tobytes()
    return packing.seal(snapshot.KIND, body)


@pytest.mark.parametrize(
    ("array", "field", "at", "value"),
    [
        ("vms", "event", 1, 3),
        ("vms", "event", 1, 13),
        ("vms", "event", 0, 1),
        ("vms", "event", 1, -1),
        ("vms", "replay", 1, 1),
        ("vms", "replay_len", 1, 11),
        ("vms", "touchable", 1, 256),
        ("vms", "touchable", 0, 257),
        ("vms", "kernel", 1, 2),
        ("replay", "page", 11, 3),
        ("replay", "word", 11, 1),
        ("replay", "at_ms", 11, 1),
    ],
)
def test_rows_that_lead_astray_are_refused(array: str, field: str, at: int, value: int) -> None:
    dtype = VM if array == "vms" else EVENT
    with pytest.raises(PackingError):
        snapshot.load(changed(array, dtype, field, at, value))


@settings(max_examples=60)
@given(some.data())
def test_a_host_with_one_other_value_is_refused_or_runs(data: some.DataObject) -> None:
    body = body_of(saved())
    at: Any = body
    while True:
        keys = sorted(at) if isinstance(at, dict) else list(range(len(at)))
        key = data.draw(some.sampled_from(keys))
        if not isinstance(at[key], dict | list) or len(at[key]) == 0:
            break
        at = at[key]
    if isinstance(at[key], bytes) and at[key]:
        content = bytearray(at[key])
        content[data.draw(some.integers(0, len(content) - 1))] = data.draw(some.integers(0, 255))
        at[key] = bytes(content)
    else:
        at[key] = data.draw(some.integers(-3, 300) | some.none() | some.text(max_size=3))
    try:
        loaded = snapshot.load(packing.seal(snapshot.KIND, body))
    except PackingError:
        return
    loaded.advance(3000)
    invariants.check(loaded.state)
