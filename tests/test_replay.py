"""Real guests' pages on a host hold what was recorded, in the fast host and in its twin."""

from __future__ import annotations

from dataclasses import replace

import naive_scenes as scenes
import numpy as np
import pytest
from host_builders import (
    arrays_of,
    counter,
    make_host,
    make_phase,
    make_spec,
    power_on,
    row_of,
    run,
    states_of,
)
from hypothesis import given, settings
from hypothesis import strategies as some
from naive_pair import Pair, vm_spec
from replay_builders import CONTENTS, make_replay, replays

from hostsim import image, snapshot
from hostsim.host import Host
from hostsim.replay import READ, Replay
from hostsim.spec import VmSpec
from hostsim.state import ANON, CACHE, FREE, KERNEL, RESIDENT, SHARED, UNTOUCHED, USE_SHIFT
from hostsim.units import MIB, PAGE_SIZE

SIZE = 256
"""Pages of each VM."""
A, K, C, F = int(ANON), int(KERNEL), int(CACHE), int(FREE)


def spec_of(vm: int, what: Replay, memory: int = SIZE * PAGE_SIZE, **options: object) -> VmSpec:
    """A VM of 1 MiB that replays, and idles beside that."""
    return replace(make_spec(vm, memory, **options), replay=what)  # type: ignore[arg-type]


def scanning_host(salting: str = "none") -> Host:
    rates = {"scan_pages_per_s_vm": 5000, "scan_pages_per_s_total": 50_000}
    return make_host(sharing={"enabled": True, "salting": salting} | rates)


def places_of(host: Host, vm: int) -> list[int]:
    """Which content of the source each page of a VM holds; 0 = the zero page."""
    row = row_of(host, vm)
    words = host.state.content[row.base_slot : row.base_slot + row.size_slots].astype(int)
    return np.where(words == row.zero, 0, words - row.image_base + 1).tolist()


def test_after_boot_the_touched_pages_hold_what_was_recorded_and_no_other_is_touched() -> None:
    """Expected: use and content of each page as in the record; the rest UNTOUCHED; exact."""
    host = scanning_host()
    boot = [(K, 3), (K, 0), (C, 5), (A, 5), (A, 1), (F, 0), (F, 7)]
    power_on(host, spec_of(1, make_replay(boot)))
    run(host, 20_000)
    row, states = row_of(host, 1), states_of(host, 1)
    assert places_of(host, 1)[: len(boot)] == [place for _, place in boot]
    uses = host.state.page[row.base_slot : row.base_slot + len(boot)] >> USE_SHIFT
    assert uses.tolist() == [use for use, _ in boot]
    assert set(states[len(boot) :].tolist()) == {int(UNTOUCHED)}
    shared = [ppn for ppn in range(SIZE) if states[ppn] == SHARED]
    assert shared == [1, 2, 3, 5], "two zero pages and two of content 5"
    assert (row.kernel, row.touchable, row.cache, row.anon) == (2, 5, 1, 2)


@pytest.mark.parametrize(("salting", "saved"), [("none", 6), ("vm", 3)])
def test_equal_contents_share_across_vms_within_a_salt_group(salting: str, saved: int) -> None:
    """VMs that hold 1, 1, 2, 0, 0 and 2, 2, 1, 3, 0: 10 pages less 4 contents; salted, 2 + 1."""
    host = scanning_host(salting)
    power_on(host, spec_of(1, make_replay([(A, 1), (A, 1), (A, 2), (A, 0), (A, 0)])))
    power_on(host, spec_of(2, make_replay([(A, 2), (A, 2), (A, 1), (A, 3), (A, 0)])))
    run(host, 20_000)
    rows = [row_of(host, vm) for vm in (1, 2)]
    assert sum(int(row.shared) for row in rows) - counter(host, "distinct") == saved


def test_a_write_breaks_sharing_and_the_page_then_shares_what_it_holds_now() -> None:
    """Page 0 holds content 1 like page 1, then from 5 s content 2 like page 2: one COW break."""
    host = scanning_host()
    power_on(host, spec_of(1, make_replay([(A, 1), (A, 1), (A, 2)], [(5000, 0, 2)])))
    run(host, 4000)
    assert states_of(host, 1)[:3].tolist() == [SHARED, SHARED, RESIDENT]
    run(host, 16_000)
    assert counter(host, "cow_breaks") == 1
    assert places_of(host, 1)[:3] == [2, 1, 2]
    assert states_of(host, 1)[:3].tolist() == [SHARED, SHARED, SHARED]
    assert row_of(host, 1).touches == 1


def test_a_reading_workload_stays_within_pages_in_use_and_changes_nothing() -> None:
    """All touched pages but the free one are read; contents and untouched pages stay; exact."""
    boot = [(K, 1), (C, 2), (A, 3), (A, 3), (F, 4)]
    phase = make_phase(active=64 * PAGE_SIZE, writes=0, drift=1000)
    host = scanning_host()
    spec = spec_of(1, make_replay(boot), workload=phase)
    power_on(host, spec)
    run(host, 60_000)
    row = row_of(host, 1)
    assert row.touches > 0 and row.active == 3
    assert places_of(host, 1)[:5] == [1, 2, 3, 3, 4]
    assert (row.untouched, counter(host, "cow_breaks")) == (SIZE - 5, 0)


@pytest.mark.parametrize("salting", ["none", "vm"])
@given(data=some.data())
@settings(max_examples=8)
def test_the_twin_agrees_on_random_hashes(salting: str, data: some.DataObject) -> None:
    """Contents shared across VMs, events in and out of memory; ample memory, and too little."""
    frames = data.draw(some.sampled_from([200, 50]))
    pair = Pair(scenes.host(1, frames, sharing={"salting": salting}), 5, 1)
    for vm in range(2):
        idle = scenes.phases(1, {"active": data.draw(some.sampled_from([0, 20])), "writes": 0})
        config = scenes.guest(1, SIZE, balloon=data.draw(some.sampled_from(["present", "absent"])))
        kind = scenes.image(1, 8, boot=3000)
        assert pair.power_on(vm_spec(vm, config, kind, idle, 7, replay=data.draw(replays(40))))
    pair.tick(data.draw(some.integers(0, 12)))
    pair.reset(1)
    pair.tick(14)
    pair.power_off(0)
    pair.tick(3)
    pair.measure()


@pytest.mark.parametrize("balloon", ["present", "absent"])
def test_the_twin_agrees_where_guests_do_not_fit(balloon: str) -> None:
    """Three guests of 90 pages and 300 events each on 150 frames: each mechanism has its part.

    Half of all pages hold one of ten contents, the others one of 200.
    """
    rng = np.random.default_rng(9)
    pair = Pair(scenes.host(1, 150, balloon={"maximum": 900}), 3, 1)
    image_of = scenes.image(1, 8, boot=3000)
    reading = scenes.phases(1, {"active": 30, "writes": 0, "drift": 1000})
    for vm in range(3):
        uses = np.repeat([K, C, A, F], [10, 30, 40, 10]).tolist()
        places = np.where(
            rng.random(390) < 0.5, rng.integers(0, 10, 390), rng.integers(0, 200, 390)
        )
        places[90:][rng.random(300) < 0.3] = READ
        events = rng.integers([1, 0], [40_000, 90], (300, 2)).tolist()
        later = [(*event, place) for event, place in zip(events, places[90:].tolist(), strict=True)]
        boot = list(zip(uses, places[:90].tolist(), strict=True))
        config = scenes.guest(1, SIZE, balloon=balloon)
        what = make_replay(boot, later, 200)
        assert pair.power_on(vm_spec(vm, config, image_of, reading, 7, replay=what))
    pair.tick(60)
    paging = ("guest_page_ins", "inflated") if balloon == "present" else ("swap_outs", "swap_ins")
    happened = pair.twin.events
    missing = [name for name in ("cow_breaks", "shares_made", *paging) if not happened[name]]
    assert not missing, f"{missing} in {dict(happened)}"
    assert all(vm.guest.replayed == 300 for vm in pair.twin.on()), "late, but all of it"
    pair.measure()


def crowded() -> Host:
    """Two VMs that replay around one that does not, on a host that scans; 8 s old."""
    host = scanning_host()
    later = [(1000 * s, s % 5, s % CONTENTS) for s in range(1, 15)] + [(7500, 2, READ)]
    boot = [(K, 3), (C, 5), (A, 5), (A, 1), (F, 0)]
    power_on(host, spec_of(1, make_replay(boot, later)), make_spec(2, MIB))
    power_on(host, spec_of(3, make_replay(boot[:3], [(60_000, 0, 1)])))
    run(host, 8000)
    return host


def test_a_saved_host_goes_on_as_it_would_have() -> None:
    host = crowded()
    again = snapshot.load(snapshot.save(host))
    assert arrays_of(again.state) == arrays_of(host.state)
    run(host, 12_000)
    run(again, 12_000)
    assert snapshot.digest(again) == snapshot.digest(host)


def test_a_vm_that_left_takes_its_events_along() -> None:
    """The others' events move together, and still say the same."""
    host = crowded()
    host.power_off(spec_of(1, make_replay([(A, 1)])).vm)
    assert len(host.state.replay) == 4
    run(host, 70_000)
    assert row_of(host, 3).event == 4
    assert places_of(host, 3)[:3] == [1, 5, 5]


def test_a_vm_goes_on_elsewhere() -> None:
    host, other = crowded(), scanning_host()
    power_on(other, make_spec(9, MIB))
    moving = image.unpack(image.pack(image.export_vm(host, host.specs[1].vm)))  # type: ignore[index]
    image.import_vm(other, moving)
    run(host, 12_000)
    run(other, 12_000)
    assert places_of(other, 1) == places_of(host, 1)
    assert row_of(other, 1).event == row_of(host, 1).event == 20


@pytest.mark.parametrize(
    ("memory", "sample", "message"),
    [(MIB, 1, "has 256 slots of 1 pages, and replays 300 pages"), (64 * MIB, 4, "of 4 pages")],
)
def test_a_vm_too_small_or_sampled_is_refused(memory: int, sample: int, message: str) -> None:
    host = make_host(sample=sample)
    before = arrays_of(host.state)
    with pytest.raises(ValueError, match=message):
        host.power_on(spec_of(1, make_replay([(A, 0)] * 300), memory))
    assert not host.specs and arrays_of(host.state) == before
