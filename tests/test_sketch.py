"""Sketches: which names are chosen, how well they count what is in common, what a host finds."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt
from typing import Any

import numpy as np
import pytest
from host_builders import (
    SECOND,
    counter,
    make_host,
    make_image,
    make_phase,
    make_spec,
    power_on,
    row_of,
    run,
    run_until_booted,
)
from hypothesis import given
from hypothesis import strategies as some

from hostsim import contents, rng, sketch
from hostsim.guest_config import ContentMix, ContentTable
from hostsim.host import Host
from hostsim.program import KEEP
from hostsim.replay import EVENT, Replay
from hostsim.spec import VmSpec
from hostsim.state import INDEX, RESIDENT, SHARED, STATE, UNIQUE
from hostsim.units import MIB, PAGE_SIZE

MIXED = ContentTable(
    kernel=ContentMix(zero=50, image=150, unique=100),
    cache=ContentMix(image=200, application=150, pool=150),
    anon=ContentMix(duplicate=100, unique=100),
)
GROWN = ContentTable(cache=ContentMix(image=300, application=300, pool=100, unique=300))
POOLED: dict[str, Any] = {"content": MIXED, "growth": GROWN, "pool": 2 * MIB}


def peak_of(spec: VmSpec) -> int:
    return max(int(spec.program["memory_pages"].max(initial=KEEP)), 0)


def sketch_of(spec: VmSpec, seed: int = 1, sample: int = 1, one_in: int = 1) -> set[int]:
    held = sketch.planned(spec, peak_of(spec), seed, sample)
    lengths = {family: end + 1000 for family, _, end in held.extents}
    found = sketch.of_holdings(held, lengths, seed, one_in)
    assert (np.diff(found) > 0).all(), "names rise, each once"
    return set(found.tolist())


def found(host: Host, one_in: int = 1) -> dict[int, set[int]]:
    """Names of each VM of a running host."""
    rows = sketch.running(host.state, host.ranges, host.specs, one_in)
    assert np.array_equal(rows, np.unique(rows)), "by VM and name, each once"
    vms = dict.fromkeys(rows["vm"].tolist())
    names = {vm: set(rows["name"][rows["vm"] == vm].tolist()) for vm in vms}
    return {vm: its - {sketch.NOTHING} for vm, its in names.items()}


def naive(host: Host, vm: int, one_in: int) -> set[int]:
    """Page by page: names of what a VM has in memory, as contents name them."""
    row, st = row_of(host, vm), host.state
    keys = contents.keys_of(row)
    names = set()
    for slot in range(row.base_slot, row.base_slot + row.size_slots):
        word = int(st.content[slot])
        if int(st.page[slot]) & STATE not in (RESIDENT, SHARED) or word & UNIQUE:
            continue
        for key in keys[1:3]:
            place = (word & INDEX) - host.ranges[key].base
            if 0 <= place < host.ranges[key].length:
                stream = rng.stream(host.seed, rng.SKETCH, sketch._owner(key.family), 0)
                if int(rng.word(np.uint64(stream), place)) % one_in == 0:
                    names.add((sketch._owner(key.family) << 32) + place)
    return names


# Which names


def test_words_are_the_streams() -> None:
    key, at = np.uint64(rng.stream(7, rng.SKETCH, 3, 0)), [0, 1, 5, 1 << 30]
    assert sketch.words(key, np.array(at)).tolist() == [int(rng.word(key, i)) for i in at]


@given(
    seed=some.integers(0, 1 << 62),
    family=some.integers(-1000, 1000),
    length=some.integers(0, 2000),
    log=some.integers(0, 6),
)
def test_what_is_chosen_depends_on_the_name_alone(
    seed: int, family: int, length: int, log: int
) -> None:
    places = sketch.chosen(seed, family, length, 1 << log)
    longer = sketch.chosen(seed, family, 2 * length, 1 << log)
    assert longer[longer < length].tolist() == places.tolist()
    fewer = sketch.chosen(seed, family, length, 2 << log)
    assert set(fewer.tolist()) <= set(places.tolist())
    if log == 0:
        assert places.tolist() == list(range(length))


def test_names_of_all_families_differ() -> None:
    families = (-3, -2, -1, 0, 1, 2, 3)
    parts = [sketch.names(family, np.arange(3)).tolist() for family in families]
    assert len({name for part in parts for name in part}) == 3 * len(families)
    assert all(name >= 0 for part in parts for name in part)


@pytest.mark.parametrize(
    ("largest", "one_in"), [(0, 1), (1, 1), (256, 1), (257, 2), (512, 2), (513, 4), (1 << 20, 4096)]
)
def test_the_largest_sketch_has_a_bounded_size(largest: int, one_in: int) -> None:
    assert sketch.rarity(largest) == one_in


def test_what_is_in_common_is_counted_without_bias_and_with_the_error_stated() -> None:
    """Two sets of 3000 and 9000 contents with 2000 in common, one name in 16, over 2000 seeds.

    Broder 1997: each content is chosen by itself, so that the estimate 16 n of n chosen ones is
    binomial: mean 2000, standard deviation sqrt(2000 x 15) = 173. Tolerances are four standard
    errors: of the mean 173 / sqrt(2000), of the deviation 1 / sqrt(2 x 2000) of it."""
    one_in, common, seeds = 16, 2000, 2000
    mine, theirs = np.arange(3000), np.arange(1000, 10_000)
    counts = []
    for seed in range(seeds):
        a, b = (names[sketch.are_chosen(seed, 5, names, one_in)] for names in (mine, theirs))
        counts.append(one_in * len(np.intersect1d(a, b)))
    deviation = sqrt(common * (one_in - 1))
    assert np.mean(counts) == pytest.approx(common, abs=4 * deviation / sqrt(seeds))
    assert np.std(counts) == pytest.approx(deviation, rel=4 / sqrt(2 * seeds))


# What is planned is what comes


@pytest.mark.parametrize("sample", [1, 4])
@pytest.mark.parametrize("application", [0, 9])
def test_a_guest_that_writes_nothing_holds_what_was_planned(sample: int, application: int) -> None:
    """Every content of every class, to the name, at the seed's sample."""
    image = make_image(4 * MIB, **POOLED)
    host = make_host(256 * MIB, seed=3, sample=sample)
    phase = make_phase(memory=13 * MIB, writes=0, active=MIB)
    specs = [
        make_spec(vm, 16 * MIB, phase, image=image, image_range=4, application_range=application)
        for vm in range(3)
    ]
    power_on(host, *specs)
    run_until_booted(host)
    run(host, 20 * SECOND)
    for one_in in (1, 8):
        planned = {spec.vm: sketch_of(spec, 3, sample, one_in) for spec in specs}
        assert planned == found(host, one_in)
        assert all(planned.values())
    a, b = planned[specs[0].vm], planned[specs[1].vm]
    assert a != b and a & b, "each draws from the pool for itself"


def test_a_replayed_guest_is_planned_to_hold_its_boot() -> None:
    events = np.zeros(6, EVENT)
    events["page"] = np.arange(6)
    events["word"] = (1 << 30) | np.array([0, 3, 3, 7, 1, 9])
    replay = Replay(events=events, pages=6, used=6, unmovable=1, contents=9)
    spec = replace(make_spec(1, MIB, make_phase(writes=0)), replay=replay, image_range=4)
    assert sketch_of(spec) == {(8 << 32) + place for place in (0, 2, 6, 8)}
    host = make_host(64 * MIB)
    power_on(host, spec)
    run_until_booted(host)
    assert found(host) == {1: sketch_of(spec)}


def test_without_sharing_nothing_is_in_common() -> None:
    image = make_image(MIB, content=MIXED, pool=MIB)
    specs = [make_spec(vm, 2 * MIB, image=image, sharing=vm == 1) for vm in (0, 1)]
    host = make_host(64 * MIB, sharing={"enabled": True})
    power_on(host, *specs)
    run_until_booted(host)
    assert sketch_of(specs[0]) == set()
    assert found(host)[0] == set() and found(host)[1]


# What is found is what is there


@pytest.mark.parametrize("salting", ["none", "vm"])
def test_a_host_finds_what_looking_at_every_page_finds(
    salting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under pressure, with writes, scans, balloons and swapping: whatever may be in memory."""
    monkeypatch.setattr(sketch, "BLOCK", 1000)  # several of them
    sketch.chosen.cache_clear()
    image = make_image(4 * MIB, **POOLED)
    rates = {"scan_pages_per_s_vm": 4000, "scan_pages_per_s_total": 8000}
    sharing = {"enabled": True, "salting": salting} | rates
    host = make_host(64 * MIB, reserve=40 * MIB, sharing=sharing)
    phase = make_phase(memory=14 * MIB, active=6 * MIB)
    specs = [make_spec(vm, 16 * MIB, phase, image=image, image_range=2 + vm % 2) for vm in range(3)]
    power_on(host, *specs)
    run_until_booted(host)
    for _ in range(4):
        run(host, 10 * SECOND)
        for one_in in (1, 4):
            assert found(host, one_in) == {vm: naive(host, vm, one_in) for vm in range(3)}
    assert any(found(host)[vm] < sketch_of(specs[vm]) for vm in range(3)), "writes take from it"
    assert (host.state.vms["swapped"] > 0).any()


def test_a_guest_that_still_boots_is_not_sketched() -> None:
    host = make_host(64 * MIB)
    power_on(
        host,
        make_spec(1, 4 * MIB, image=make_image(MIB, boot=60 * SECOND, content=MIXED, pool=MIB)),
    )
    run(host, 30 * SECOND)
    assert found(host) == {}
    run(host, 40 * SECOND)
    assert found(host)[1]


def test_what_is_not_in_memory_is_not_held() -> None:
    """An untouched VM, whose pages' words are zero pages', holds no names."""
    image = make_image(PAGE_SIZE, content=ContentTable(kernel=ContentMix(zero=1000)))
    host = make_host(64 * MIB)
    power_on(host, make_spec(1, 4 * MIB, image=image))
    run_until_booted(host)
    rows = sketch.running(host.state, host.ranges, host.specs, 1)
    assert rows.tolist() == [(1, sketch.NOTHING)]


def test_what_sketches_have_in_common_is_what_scanning_saves() -> None:
    """Copies of a name but one are the frames that sharing frees, once all pages are scanned; to
    the frame with every name, and within three standard errors with one in eight."""
    content = ContentTable(
        kernel=ContentMix(image=300, unique=200), cache=ContentMix(application=500)
    )
    rates = {f"scan_pages_per_s_{of}": 50_000 for of in ("vm", "total")}
    host = make_host(64 * MIB, sharing={"enabled": True} | rates)
    phase = make_phase(writes=0)
    sizes = (4 * MIB, 6 * MIB, 8 * MIB, 8 * MIB)
    for vm, size in enumerate(sizes):
        image = make_image(size, content=content)
        power_on(host, make_spec(vm, size, phase, image=image, application_range=9))
    run_until_booted(host)
    run(host, 30 * SECOND)
    saved = int(host.state.vms["shared"].sum()) - counter(host, "distinct")
    assert saved > 3000
    for one_in, error in ((1, 0.0), (8, 3 * sqrt(7 * saved))):
        its = sketch.running(host.state, host.ranges, host.specs, one_in)["name"]
        counts = np.unique(its[its != sketch.NOTHING], return_counts=True)[1]
        # Copies of one name come and go together, three of them at most.
        assert one_in * int((counts - 1).sum()) == pytest.approx(saved, abs=error * sqrt(3))
