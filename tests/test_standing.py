"""Where a run stands, as bytes: nothing is lost, and nothing else is taken for it."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest
from cluster_builders import host_set
from hypothesis import given, settings
from hypothesis import strategies as some
from test_resume import lively
from test_snapshot_damage import body_of, change_one_value

from cluster import standing
from cluster.coordinator import barriers
from cluster.fleet import LocalFleet
from cluster.policy.history import History
from cluster.population import Population, populate
from cluster.scenario_file import Loaded
from cluster.standing import BODY_KEYS, KIND, Standing
from cluster.tables import Written
from hostsim import packing
from hostsim.packing import PackingError

EPOCHS = 9


@functools.cache
def run() -> tuple[Loaded, Population, Standing]:
    """A lively run, at a moment when VMs are on their way and others wait."""
    with tempfile.TemporaryDirectory() as folder:
        loaded = lively(Path(folder))
    population = populate(loaded)
    seen, history = standing.blank(loaded, population), History()
    fleet = LocalFleet(host_set(loaded, population.hosts))
    for barrier in barriers(population, loaded.scenario, fleet):
        for one in barrier.plan.decisions:
            history.add(one)
        seen.add(barrier.report)
        if barrier.epoch >= EPOCHS:
            break
    written = Written({"hosts": 36, "epochs": 9}, 1234)
    return loaded, population, Standing(barrier.epoch, barrier.now, seen, history, written)


@functools.cache
def packed() -> bytes:
    return standing.pack(run()[2])


def unpacked(data: bytes) -> Standing:
    loaded, population, _ = run()
    return standing.unpack(data, loaded, population)


def body() -> dict[str, Any]:
    return body_of(packed())


def test_what_is_packed_comes_back() -> None:
    found, was = unpacked(packed()), run()[2]
    assert standing.pack(found) == packed()
    assert (found.epoch, found.written, found.history) == (was.epoch, was.written, was.history)
    assert found.now.flights == was.now.flights and found.now.queue == was.now.queue
    assert found.off() == was.off()
    for name, column in vars(was.seen).items():
        assert repr(getattr(found.seen, name)) == repr(column) or name == "hosts", name


def test_all_that_changes_in_a_run_is_packed() -> None:
    """Whoever adds a column to the state, or a sum to what a run has seen, packs it here."""
    state = {one for one in run()[2].now.__dataclass_fields__}
    constant = {"hosts", "vms", "rules", "pools"}
    assert state == {*standing.STATE_COLUMNS, *constant, "sketches", "flights", "queue"}
    seen = set(vars(run()[2].seen)) - {"hosts", "vms", "ids", "epoch_ms", "sample"}
    assert seen == {*standing.PER_VM, *standing.COUNTS, *standing.SEEN_KEYS} - {"counts", "per_vm"}
    history = set(History.__dataclass_fields__)
    also = {"fates", "migrating_s", "slowed_s", "failures", "restarts"}
    assert history == {*standing.HISTORY, *also}


@pytest.mark.parametrize("key", BODY_KEYS)
def test_what_lacks_a_part_is_refused(key: str) -> None:
    less = body()
    del less[key]
    with pytest.raises(PackingError):
        unpacked(packing.seal(KIND, less))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("epoch",), 0),
        (("epoch",), 16),
        (("queue",), [[99, 0, 0, False, None]]),
        (("flights",), [[0, 0, 9, 0, "x", 1, 1, 1, 0, 0, 0, 0, 1000, 0, None, None]]),
        (("fates",), [[99, 0, None, None, None, [], None]]),
        (("fates",), [[1, 0, None, None, None, [9], None]]),
        (("seen", "epochs", "vms"), b"12345678"),
        (("seen", "bins"), {"shape": [2, 1], "data": bytes(7) + b"\x7f" + bytes(8)}),
        (("state", "host_of", "shape"), [2]),
        (("sketches", "starts"), {"shape": [1], "data": bytes(8)}),
    ],
)
def test_what_is_out_of_range_is_refused(path: tuple[str, ...], value: Any) -> None:
    wrong = body()
    at: Any = wrong
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(PackingError):
        unpacked(packing.seal(KIND, wrong))


@settings(max_examples=60)
@given(some.data())
def test_damage_is_found(data: some.DataObject) -> None:
    damaged = bytearray(packed())
    place = data.draw(some.integers(0, len(damaged) - 1))
    damaged[place] ^= data.draw(some.integers(1, 255))
    for wrong in (bytes(damaged), packed()[:place]):
        with pytest.raises(PackingError):
            unpacked(wrong)


@settings(max_examples=100)
@given(some.data())
def test_another_value_under_a_right_digest_is_refused_or_read(data: some.DataObject) -> None:
    other = body()
    change_one_value(other, data)
    try:
        found = unpacked(packing.seal(KIND, other))
    except PackingError:
        return
    again = standing.pack(found)
    assert standing.pack(unpacked(again)) == again
