"""Every truth of the memory manager can fail: each damage is found, by its name, with numbers."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from crowded_hosts import SECOND, VMS, crowded_host, starved
from host_builders import counter, row_of, states_of

from hostsim import invariants, snapshot
from hostsim.compress import NEWER
from hostsim.host import Host
from hostsim.invariants import BrokenInvariantError
from hostsim.state import (
    ACCESSED,
    ANON,
    BALLOONED,
    DRIVER_ABSENT,
    HINT,
    KIND,
    RESIDENT,
    SHARED,
    STALE,
    STATE,
    STATES,
    SWAPPED,
    UNIQUE,
    USE_SHIFT,
)

Damage = Callable[[Host], object]


def add(name: str, amount: int = 1, vm: int | None = None) -> Damage:
    """To a number of a VM, or of the host."""

    def damage(host: Host) -> None:
        row = host.state.host[0] if vm is None else row_of(host, vm)
        row[name] += amount

    return damage


def page_with(host: Host, state: int, also: Callable[[int, int], bool] | None = None) -> int:
    """The first slot of the host in this state for whose byte and word `also` holds."""
    for slot, (byte, word) in enumerate(
        zip(host.state.page.tolist(), host.state.content.tolist(), strict=True)
    ):
        if byte & int(STATE) == state and (also is None or also(byte, word)):
            return slot
    raise AssertionError(f"no page in state {state}")


def becomes(state: int, byte: int) -> Damage:
    """A page in `state` turns to another byte; its use stays."""

    def damage(host: Host) -> None:
        at = page_with(host, state, lambda found, _: found != byte)
        host.state.page[at] = int(host.state.page[at]) & ~int(STATE) | byte

    return damage


def moved_hint(host: Host) -> None:
    """The hint of one content names another page of its VM."""
    at = int(np.flatnonzero(host.state.hints >= 0)[0])
    host.state.indexed[at] += 1


def hint_on_a_shared_page(host: Host) -> None:
    host.state.page[page_with(host, int(SHARED))] |= int(HINT)


def hint_without_a_page(host: Host) -> None:
    host.state.indexed[np.flatnonzero(host.state.indexed == 0)[0]] = 5


def hint_bit_lost(host: Host) -> None:
    at = page_with(host, int(RESIDENT), lambda byte, word: bool(byte & HINT and word & UNIQUE))
    host.state.page[at] -= int(HINT)


def stale_hint_without_a_page(host: Host) -> None:
    """It names a page beyond the VM: the next one may own a stale hint itself."""
    host.state.indexed[host.state.stale_contents[0]] += 1 << 30


def stale_hint_twice(host: Host) -> None:
    host.state.stale[np.flatnonzero(host.state.stale == 0)[0]] = host.state.stale.max()


def stale_hint_forgotten(host: Host) -> None:
    host.state.stale[np.flatnonzero(host.state.stale)[0]] = 0


def another_shared_content(host: Host) -> None:
    """One of a shared frame's pages names another frame."""
    at = page_with(host, int(SHARED))
    others = np.flatnonzero(host.state.refs)
    other = others[others != host.state.content[at]][0]
    host.state.content[at] = other


def unique_but_shared(host: Host) -> None:
    host.state.content[page_with(host, int(SHARED))] |= int(UNIQUE)


def stale_but_shared(host: Host) -> None:
    host.state.content[page_with(host, int(SHARED))] |= int(STALE)


def frames_from_nowhere(host: Host) -> None:
    """More free and fewer machine frames than there are: the sum still holds."""
    host.state.host[0].free -= 10**6
    host.state.host[0].machine -= 10**6


def other_use(host: Host) -> None:
    """An anonymous page in memory becomes one of the kernel's."""
    anon = int(ANON)
    at = page_with(host, int(RESIDENT), lambda byte, _: byte >> int(USE_SHIFT) == anon)
    host.state.page[at] |= 3 << int(USE_SHIFT)


def backed_by_nothing(host: Host) -> None:
    """A ballooned page says that it gave a frame, or takes it back."""
    host.state.page[page_with(host, int(BALLOONED))] ^= int(ACCESSED)


def dropped_though_dirty(host: Host) -> None:
    """The host claims to have dropped an anonymous page, which no disk holds."""
    anon = int(ANON)
    at = page_with(host, int(SWAPPED), lambda byte, _: byte >> int(USE_SHIFT) == anon)
    host.state.page[at] |= int(ACCESSED)


def no_driver(host: Host) -> None:
    row_of(host, 1).driver = DRIVER_ABSENT


def swap_space_shrinks(host: Host) -> None:
    """Below what is swapped."""
    row = row_of(host, 1)
    row.swap_space = row.swapped - 1


def cached_twice(host: Host) -> None:
    """The newest page of a cache is followed by the oldest one."""
    row = row_of(host, 2)
    host.state.by_age[row.base_slot + row.newest - 1, NEWER] = row.oldest


def compresses_worse(host: Host) -> None:
    """A quarter more than the page takes, in the same frames."""
    rows = (row_of(host, vm) for vm in VMS)
    next(row for row in rows if row.compressed_quarters % 4).compressed_quarters += 1


def large_page_with_a_hole(host: Host) -> None:
    """A region of a page, where one is that is not in memory."""
    st, row = host.state, row_of(host, 1)
    large = np.zeros(len(st.page), np.uint8)
    large[row.base_slot + np.flatnonzero(states_of(host, 1) != RESIDENT)[0]] = 1
    host.state = replace(st, large=large)
    st.host[0].large_slots = row.large = 1
    row.regions, row.large_base = row.size_slots, row.base_slot


def kind_without_a_frame(host: Host) -> None:
    host.state.page[page_with(host, int(BALLOONED))] |= int(KIND)


def cached_nowhere(host: Host) -> None:
    host.state.page[page_with(host, int(SWAPPED))] ^= int(KIND)


def kind_of_a_page_alone(host: Host) -> None:
    """A page in low memory says that it lies high; no count of frames does."""
    at = page_with(host, int(RESIDENT), lambda byte, _: not byte & int(KIND))
    host.state.page[at] |= int(KIND)


def kind_of_no_shared_frame(host: Host) -> None:
    host.state.shared_kind[np.flatnonzero(host.state.refs == 0)[0]] = KIND


def kind_that_is_none(host: Host) -> None:
    host.state.shared_kind[np.flatnonzero(host.state.refs)[0]] = 1


def shared_frame_elsewhere(host: Host) -> None:
    host.state.shared_kind[np.flatnonzero(host.state.refs)[0]] ^= np.uint8(KIND)


def sample_set_aside(host: Host) -> None:
    """A look for cold pages that did not put back what it noted in a running sample."""
    host.state.sampled[(host.state.vms["vm"] == 2).argmax()] += int(row_of(host, 2).size_slots)


def high_frames_from_nowhere(host: Host) -> None:
    """More free high frames than there are free ones: the sum still holds."""
    host.state.host[0].highmem_free += 10**6
    host.state.host[0].highmem += 10**6


DAMAGES: list[tuple[str, str, Damage]] = [
    *((f"one more {name}", "page states", add(name, 1, vm=2)) for name in STATES),
    ("less swap space than swapped pages", "swap space", swap_space_shrinks),
    ("a resident page is swapped", "page states", becomes(int(RESIDENT), int(SWAPPED))),
    ("a swapped page is resident", "page states", becomes(int(SWAPPED), int(RESIDENT))),
    ("a cache that goes round", "compression cache", cached_twice),
    ("a cache that ends early", "compression cache", add("newest", -1, vm=2)),
    ("a page that takes more", "compression cache", compresses_worse),
    ("a smaller cache than it holds", "compression cache", add("compressed_max", -(10**6), vm=2)),
    ("cache in high memory that is none", "high frames", add("compressed_highmem", 10**6, vm=2)),
    ("a large page with a hole", "large pages", large_page_with_a_hole),
    ("one more large page", "large pages", add("large", 1, vm=3)),
    ("one more page in the host cache", "host cache", add("ssd_used", 1)),
    ("one more backed page", "balloon", add("backed", 1, vm=3)),
    ("a ballooned page gave nothing", "balloon", backed_by_nothing),
    ("a balloon without a driver", "balloon", no_driver),
    ("an anonymous page was dropped", "dropped pages", dropped_though_dirty),
    ("one more free guest page", "guest use", add("guest_free", 1, vm=1)),
    ("one less cache page", "guest use", add("cache", -1, vm=1)),
    ("one more anonymous page", "guest use", add("anon", 1, vm=1)),
    ("one more paged out", "guest use", add("guest_swapped", 1, vm=1)),
    ("an anonymous page turns to kernel", "guest use", other_use),
    ("a reference to another frame", "references", another_shared_content),
    ("a unique page is shared", "references", unique_but_shared),
    ("a stale page is shared", "references", stale_but_shared),
    ("one more shared frame", "distinct shared frames", add("distinct", 1)),
    ("a ballooned page of a kind", "kinds", kind_without_a_frame),
    ("a swapped page in no host cache", "host cache", cached_nowhere),
    ("a page of the other kind", "kinds", kind_of_a_page_alone),
    ("one more page in high memory", "kinds", add("highmem", 1, vm=2)),
    ("a kind of a content that nobody shares", "kinds", kind_of_no_shared_frame),
    ("a kind that there is not", "kinds", kind_that_is_none),
    ("a shared frame in the other memory", "high frames", shared_frame_elsewhere),
    ("one more free high frame", "high frames", add("highmem_free", 1)),
    ("a machine with more high frames", "high frames", add("highmem", 1)),
    ("more free high frames than free ones", "high frames", high_frames_from_nowhere),
    ("overhead in high memory that is none", "high frames", add("overhead_highmem", 1, vm=2)),
    ("a touch of a page on no NVMe", "tiers", add("tier_touches", 1)),
    ("a goal of DRAM that is all memory", "tiers", add("tier_goal", 1)),
    ("more pages that came up than were touched", "tiers", add("tier_ups", 1)),
    ("copies for devices beside tiers", "tiers", add("tiered", 1)),
    ("a sample that is set aside", "samples", sample_set_aside),
    ("one frame more", "frames", add("free", 1)),
    ("one frame less", "frames", add("free", -1)),
    ("a smaller machine", "frames", add("machine", -1)),
    ("negative free memory", "frames", frames_from_nowhere),
    ("one more overhead page of a VM", "overheads", add("overhead", 1, vm=4)),
    ("one more overhead page of the host", "overheads", add("overhead", 1)),
    ("a hint of another page", "hints", moved_hint),
    ("a hint of a page without one", "hints", hint_without_a_page),
    ("a shared page with a hint", "hints", hint_on_a_shared_page),
    ("a lost hint", "hint frames", hint_bit_lost),
    ("one more hint frame", "hint frames", add("hint_frames", 1)),
    ("a stale hint without its page", "stale hints", stale_hint_without_a_page),
    ("a stale hint that is listed twice", "stale hints", stale_hint_twice),
    ("a stale hint that is not listed", "hints", stale_hint_forgotten),
]


@pytest.mark.parametrize(("what", "name", "damage"), DAMAGES, ids=[one[0] for one in DAMAGES])
def test_a_damaged_host_breaks_the_truth_by_its_name(what: str, name: str, damage: Damage) -> None:
    host = snapshot.load(starved())
    invariants.check(host.state)
    damage(host)
    with pytest.raises(BrokenInvariantError, match=rf"^{re.escape(name)}: .*\d"):
        invariants.check(host.state)


def test_references_that_are_not_counted_are_named_with_their_content() -> None:
    host = snapshot.load(starved())
    content = int(np.flatnonzero(host.state.refs > 1)[0])
    had = int(host.state.refs[content])
    host.state.indexed[content] -= 5
    message = rf"^references: content \[{content}\]: \[{had}\] pages, \[{had + 5}\] references$"
    with pytest.raises(BrokenInvariantError, match=message):
        invariants.check(host.state)


def test_every_truth_of_the_module_is_broken_above() -> None:
    """All names that `invariants` can report, from its source."""
    source = invariants.__loader__.get_source(invariants.__name__)  # type: ignore[union-attr]
    names = set(re.findall(r'^\s+"([a-z ]+)"(?:,|, f")', source, re.MULTILINE))
    names |= set(re.findall(r'_require\([^"]*"([a-z ]+)"', source))
    assert names == {name for _, name, _ in DAMAGES}


def test_checking_changes_nothing() -> None:
    host = snapshot.load(starved())
    before = snapshot.save(host)
    invariants.check(host.state)
    assert snapshot.save(host) == before == starved()


@pytest.mark.parametrize("salting", ["none", "vm"])
@pytest.mark.parametrize("frames", [180, 320, 420])
def test_a_starving_host_keeps_every_truth_through_every_step(frames: int, salting: str) -> None:
    host = crowded_host(frames=frames, sharing={"salting": salting})
    for step in range(60):
        host.advance(SECOND)
        invariants.check(host.state)
        if step == 40:
            host.power_off(VMS[1])
            host.reset(VMS[2])
            invariants.check(host.state)
    assert counter(host, "swap_outs") > 0 and counter(host, "cow_breaks") > 0


def test_an_empty_host_keeps_every_truth() -> None:
    host = crowded_host(vms=())
    invariants.check(host.state)
    host.advance(3 * SECOND)
    invariants.check(host.state)
    assert counter(host, "free") == counter(host, "machine")
