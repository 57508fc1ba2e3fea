"""Content-based page sharing [P 4.2, 4.3]: what one scan, write or page-out does to one page.

Kernels are called on a host whose VMs never run, so that every frame is accounted for. Rates and
what sharing saves in a running host: test_share_rates.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from host_builders import (
    ALL_IMAGE,
    counter,
    make_host,
    make_image,
    make_spec,
    power_on,
    row_index,
    states_of,
)

from hostsim import fault, invariants, share, swap
from hostsim.arrays import stale_size
from hostsim.host import Host
from hostsim.state import (
    PPN_BITS,
    RESIDENT,
    SHARED,
    STALE,
    SWAPPED,
    UNIQUE,
    set_hint,
)
from hostsim.units import MIB, PAGE_SIZE, VmId

N_PAGES = MIB // PAGE_SIZE
ON = {"enabled": True}


def still_host(n_vms: int = 2, frames: int | None = None, **sharing: Any) -> Host:
    """VMs 1..n of 256 pages, that never ran, all of one image; rows 0..n-1."""
    reserve = 0 if frames is None else 64 * MIB - frames * PAGE_SIZE
    host = make_host(reserve=reserve, sharing=ON | sharing)
    image = make_image(MIB, content=ALL_IMAGE)
    power_on(host, *(make_spec(vm, MIB, image=image) for vm in range(1, n_vms + 1)))
    return host


def common(host: Host, number: int, v: int = 0) -> int:
    """Content word number `number` of the image."""
    return int(host.state.vms[v].image_base) + number


def put(host: Host, v: int, ppn: int, word: int) -> int:
    """The guest writes `word`; the cost, or why it stalls."""
    cost = fault.touch(host.state, v, ppn, 1, word)
    invariants.check(host.state)
    return cost


def scan(host: Host, v: int, ppn: int) -> None:
    share.scan_page(host.state, v, ppn)
    invariants.check(host.state)


def share_all(host: Host, holders: list[tuple[int, int]], number: int) -> int:
    """Make all `holders` references to one shared frame; its word."""
    word = common(host, number)
    for v, ppn in holders:
        put(host, v, ppn, word)
        scan(host, v, ppn)
    assert host.state.refs[word] == len(holders)
    return word


def state(host: Host, v: int, ppn: int) -> int:
    return int(states_of(host, int(host.state.vms[v].vm))[ppn])


# One page at a time


def test_a_miss_leaves_a_hint_and_does_not_protect_the_page() -> None:
    host = still_host()
    put(host, 0, 3, common(host, 0))
    scan(host, 0, 3)
    assert (counter(host, "hint_frames"), counter(host, "distinct")) == (1, 0)
    put(host, 0, 3, common(host, 1))
    assert (counter(host, "cow_breaks"), counter(host, "cow_reuses")) == (0, 0)


def test_two_equal_pages_become_one_frame() -> None:
    host = still_host()
    share_all(host, [(0, 3), (1, 9)], 0)
    machine = counter(host, "machine")
    assert counter(host, "free") == machine - 1
    assert (counter(host, "distinct"), counter(host, "hint_frames")) == (1, 0)
    assert counter(host, "shares_made") == 1
    assert (state(host, 0, 3), state(host, 1, 9)) == (SHARED, SHARED)


def test_a_third_equal_page_adds_a_reference_and_frees_its_frame() -> None:
    host = still_host(3)
    word = share_all(host, [(0, 3), (1, 9), (2, 0), (2, 1)], 0)
    assert host.state.refs[word] == 4
    assert counter(host, "free") == counter(host, "machine") - 1


def test_different_contents_are_not_shared() -> None:
    host = still_host()
    for v in (0, 1):
        put(host, v, 3, common(host, v))
        scan(host, v, 3)
    assert (counter(host, "distinct"), counter(host, "hint_frames")) == (0, 2)


def test_scanning_a_shared_page_changes_nothing() -> None:
    host = still_host()
    word = share_all(host, [(0, 3), (1, 9)], 0)
    scan(host, 0, 3)
    assert (host.state.refs[word], counter(host, "scanned")) == (2, 3)


def test_a_fresh_guest_write_matches_nothing_but_counts_as_a_hint_frame() -> None:
    host = still_host()
    for v in (0, 1):
        put(host, v, 3, int(UNIQUE) | 7)
        scan(host, v, 3)
    assert (counter(host, "distinct"), counter(host, "hint_frames")) == (0, 2)


# Hints go stale


def test_a_stale_hint_is_counted_when_a_lookup_meets_it() -> None:
    host = still_host()
    put(host, 0, 3, common(host, 0))
    scan(host, 0, 3)
    put(host, 0, 3, common(host, 1))
    assert (counter(host, "stale_hints"), counter(host, "hint_frames")) == (0, 1)
    put(host, 1, 9, common(host, 0))
    scan(host, 1, 9)
    assert counter(host, "stale_hints") == 1
    assert counter(host, "distinct") == 0
    assert host.state.hints[common(host, 0)] == 1 << PPN_BITS | 9


def test_a_stale_hint_is_counted_when_its_page_is_scanned_again() -> None:
    host = still_host()
    put(host, 0, 3, common(host, 0))
    scan(host, 0, 3)
    put(host, 0, 3, int(UNIQUE) | 1)
    scan(host, 0, 3)
    assert (counter(host, "stale_hints"), counter(host, "hint_frames")) == (1, 1)
    assert host.state.hints[common(host, 0)] == -1


def test_a_page_scanned_again_with_its_old_content_is_not_stale() -> None:
    host = still_host()
    put(host, 0, 3, common(host, 0))
    scan(host, 0, 3)
    scan(host, 0, 3)
    assert (counter(host, "stale_hints"), counter(host, "hint_frames")) == (0, 1)


def test_a_hint_matches_again_once_its_page_holds_the_old_content_again() -> None:
    host = still_host()
    put(host, 0, 3, common(host, 0))
    scan(host, 0, 3)
    put(host, 0, 3, int(UNIQUE) | 1)
    put(host, 0, 3, common(host, 0))
    put(host, 1, 9, common(host, 0))
    scan(host, 1, 9)
    assert (counter(host, "stale_hints"), counter(host, "distinct")) == (0, 1)


@pytest.mark.parametrize("rewritten", [False, True])
def test_a_hint_ends_uncounted_when_its_page_leaves_memory(rewritten: bool) -> None:
    host = still_host()
    put(host, 0, 3, common(host, 0))
    scan(host, 0, 3)
    if rewritten:
        put(host, 0, 3, common(host, 1))
    fault.leave_memory(host.state, 0, 3, SWAPPED)
    invariants.check(host.state)
    assert (counter(host, "hint_frames"), counter(host, "stale_hints")) == (0, 0)
    assert host.state.hints[common(host, 0)] == -1


def test_stale_hints_are_found_again_however_many_collide() -> None:
    """The table of stale hints under random insertion and removal, against a dict; filled as far
    as it can be, with one of every content, time and again."""
    n = 60
    st = replace(
        still_host(4).state,
        indexed=np.zeros(n, np.int64),
        stale=np.zeros(stale_size(n), np.uint32),
    )
    draw = np.random.default_rng(5)
    kept: dict[int, int] = {}
    sizes = []
    for step in range(6000):
        key = int(draw.integers(4)) << 40 | int(draw.integers(64))
        at = share.stale_find(st, key)
        assert (at >= 0) == (key in kept)
        unused = np.flatnonzero(st.indexed == 0)
        if at >= 0 and step % 1000 >= 500:
            content = share.stale_at(st, at)
            assert content == kept.pop(key)
            share.stale_remove(st, at)
            set_hint(st, content, -1)
        elif at < 0 and len(unused) > 0 and step % 1000 < 500:
            kept[key] = int(draw.choice(unused))
            set_hint(st, kept[key], key)
            share.stale_put(st, kept[key])
        sizes.append(len(kept))
        assert sorted(st.stale_contents.tolist()) == sorted(kept.values())
    assert min(sizes[500:]) < 10 and max(sizes) == n


# Copy on write


def test_a_write_to_a_shared_page_copies_it() -> None:
    host = still_host()
    word = share_all(host, [(0, 3), (1, 9)], 0)
    free = counter(host, "free")
    cost = put(host, 0, 3, int(UNIQUE) | 1)
    assert cost == host.config.costs.cow > 0
    assert counter(host, "cow_breaks") == 1
    assert (host.state.refs[word], counter(host, "distinct")) == (1, 1)
    assert counter(host, "free") == free - 1
    assert (state(host, 0, 3), state(host, 1, 9)) == (RESIDENT, SHARED)


def test_the_sole_holder_writes_in_place() -> None:
    host = still_host()
    word = share_all(host, [(0, 3), (1, 9)], 0)
    put(host, 0, 3, int(UNIQUE) | 1)
    free = counter(host, "free")
    assert put(host, 1, 9, int(UNIQUE) | 2) == 0
    assert (counter(host, "cow_breaks"), counter(host, "cow_reuses")) == (1, 1)
    assert (host.state.refs[word], counter(host, "distinct")) == (0, 0)
    assert counter(host, "free") == free


@pytest.mark.parametrize("free", range(6))
def test_writers_of_one_frame_when_frames_run_out(free: int) -> None:
    """Five writers, `free` free frames: a copy each while frames last; whoever is then the sole
    holder writes in place; the rest stall and lose nothing (design: rules paid for, 2)."""
    holders = [(v, ppn) for v in range(5) for ppn in (2,)]
    host = still_host(5, frames=5)
    word = share_all(host, holders, 0)
    for ppn in range(3, 7 - free):
        put(host, 0, ppn, int(UNIQUE) | 50 + ppn)
    if free < 5:
        assert counter(host, "free") == min(free, 4)
    costs = [put(host, v, ppn, int(UNIQUE) | 100 + v) for v, ppn in holders]
    copies = min(free, 4)
    assert counter(host, "cow_breaks") == copies
    assert counter(host, "cow_reuses") == (copies == 4)
    assert costs.count(fault.NO_FRAME) == (0 if copies == 4 else 5 - copies)
    assert host.state.refs[word] == (0 if copies == 4 else 5 - copies)
    assert counter(host, "free") == 0


# Share before swap


@pytest.mark.parametrize("other", ["shared frame", "hint"])
def test_a_page_is_shared_before_it_is_swapped(other: str) -> None:
    host = still_host(3)
    word = common(host, 0)
    if other == "shared frame":
        share_all(host, [(0, 3), (1, 9)], 0)
    else:
        put(host, 0, 3, word)
        scan(host, 0, 3)
    put(host, 2, 5, word)
    free = counter(host, "free")
    swap.page_out(host.state, 2, 5)
    invariants.check(host.state)
    assert (counter(host, "shared_before_swap"), counter(host, "swap_outs")) == (1, 0)
    assert state(host, 2, 5) == SHARED
    assert counter(host, "free") == free + 1


def test_a_page_without_an_equal_is_swapped_and_leaves_no_hint() -> None:
    host = still_host()
    put(host, 0, 3, common(host, 0))
    swap.page_out(host.state, 0, 3)
    invariants.check(host.state)
    assert (counter(host, "swap_outs"), counter(host, "hint_frames")) == (1, 0)
    assert host.state.hints[common(host, 0)] == -1


def test_a_stale_hint_does_not_save_a_page_from_swap() -> None:
    host = still_host()
    put(host, 0, 3, common(host, 0))
    scan(host, 0, 3)
    put(host, 0, 3, common(host, 1))
    put(host, 1, 9, common(host, 0))
    swap.page_out(host.state, 1, 9)
    invariants.check(host.state)
    assert state(host, 1, 9) == SWAPPED
    assert (counter(host, "stale_hints"), counter(host, "hint_frames")) == (1, 0)


# Over many steps


def test_a_guests_reads_do_not_depend_on_sharing() -> None:
    """Random writes, scans and page-outs of few contents on few pages: what each page holds is
    what was last written to it, and the memory manager's truths hold after each."""
    host = still_host(3, frames=24)
    st, draw = host.state, np.random.default_rng(11)
    words = [int(st.vms[0].zero), *(common(host, i) for i in range(4))]
    written: dict[tuple[int, int], int] = {}
    st.host[0].swap_io_left = 1 << 40
    for serial in range(3000):
        v, ppn, what = int(draw.integers(3)), int(draw.integers(12)), draw.integers(10)
        if what < 4:
            word = int(UNIQUE) | serial if draw.integers(4) == 0 else words[draw.integers(5)]
            if fault.touch(st, v, ppn, 1, word) >= 0:
                written[v, ppn] = word
        elif what < 5:
            if fault.touch(st, v, ppn, 0, 0) >= 0:
                written.setdefault((v, ppn), words[0])
        elif what < 9 and state(host, v, ppn) in (RESIDENT, SHARED):
            share.scan_page(st, v, ppn)
        elif swap.is_victim(st, int(st.vms[v].base_slot) + ppn):
            swap.page_out(st, v, ppn)
        invariants.check(st)
        for (row, page), word in written.items():
            held = int(st.content[st.vms[row].base_slot + page])
            assert held & ~int(STALE) == word
    made = [counter(host, name) for name in ("shares_made", "cow_breaks", "cow_reuses")]
    hints = [counter(host, name) for name in ("stale_hints", "shared_before_swap", "swap_ins")]
    assert min(made + hints) > 5


def test_a_vm_that_powers_off_drops_its_references() -> None:
    host = still_host(3)
    word = share_all(host, [(0, 3), (1, 9), (2, 4)], 0)
    assert host.state.refs[word] == 3
    host.power_off(VmId(2))
    invariants.check(host.state)
    assert host.state.refs[common(host, 0)] == 2
    assert counter(host, "free") == counter(host, "machine") - 1
    host.power_off(VmId(1))
    host.power_off(VmId(3))
    assert row_index(host, 3) == 0
    assert counter(host, "free") == counter(host, "machine")
