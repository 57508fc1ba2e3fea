"""Content ranges: allotted with the first user, moved when one grows or ends, and nothing that a
guest reads, no reference and no hint changes by it."""

from __future__ import annotations

from typing import Any

import numpy as np
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
from hypothesis import given, settings
from hypothesis import strategies as st

from hostsim import fault, invariants, share
from hostsim.contents import (
    APPLICATION_RANGE,
    DUPLICATE_RANGE,
    IMAGE_RANGE,
    ZERO_RANGE,
    Key,
    Ranges,
    acquire,
    keys_of,
    release,
)
from hostsim.guest_config import ContentMix, ContentTable, GuestImage
from hostsim.host import Host
from hostsim.state import INDEX, PPN_BITS, SHARED, STALE, UNIQUE
from hostsim.units import MIB, VmId

CONTENT = ContentTable(
    cache=ContentMix(image=300, application=100),
    anon=ContentMix(zero=100, image=100, duplicate=200, unique=200),
)
Meaning = tuple[Any, ...]


def meaning(host: Host, index: int) -> Meaning:
    """What a content index of this host stands for, whatever ranges lie where."""
    key, at = next(
        (key, at) for key, at in host.ranges.items() if at.base <= index < at.base + at.length
    )
    return (*key, index - at.base)


def readings(host: Host) -> dict[int, list[Meaning]]:
    """What each guest would read from each of its pages, with state and stale marks."""
    st_, found = host.state, {}
    for vm in host.vm_ids():
        row = row_of(host, vm)
        cut = np.s_[row.base_slot : row.base_slot + row.size_slots]
        found[int(vm)] = [
            (page, word) if word & int(UNIQUE) else (page, word & int(STALE), *meaning(host, index))
            for page, word, index in zip(
                st_.page[cut].tolist(),
                st_.content[cut].tolist(),
                (st_.content[cut] & np.uint32(INDEX)).tolist(),
                strict=True,
            )
        ]
    return found


def ids_of(host: Host, key: int) -> tuple[int, int]:
    """A page's key (row << 40 | ppn) as (VM id, ppn)."""
    return int(host.state.vms[key >> PPN_BITS].vm), key & ((1 << PPN_BITS) - 1)


def index_of_sharing(host: Host) -> dict[str, dict[Meaning, Any]]:
    """References and hints by what they are about."""
    state = host.state
    refs, hints = state.refs, state.hints
    hinted = np.flatnonzero(hints >= 0).tolist()
    stale = state.stale_contents.tolist()
    for content in stale:
        assert share.stale_at(state, share.stale_find(state, int(hints[content]))) == content
    return {
        "refs": {meaning(host, i): int(refs[i]) for i in np.flatnonzero(refs)},
        "hints": {meaning(host, i): ids_of(host, int(hints[i])) for i in hinted},
        "stale": {ids_of(host, int(hints[i])): meaning(host, i) for i in stale},
    }


def image(megabytes: int = 2, **options: Any) -> GuestImage:
    return make_image(megabytes * MIB, content=CONTENT, application="app", **options)


def sharing_host(**sharing: Any) -> Host:
    rates = {"scan_pages_per_s_vm": 150, "scan_pages_per_s_total": 1000}
    return make_host(96 * MIB, sharing={"enabled": True} | rates | sharing)


# Which ranges there are


KEYS = [Key(kind, family, salt) for kind in range(4) for family in (1, 2) for salt in (0, 3)]


@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(st.booleans(), st.dictionaries(st.sampled_from(KEYS), st.integers(0, 50))),
        max_size=20,
    )
)
def test_ranges_lie_side_by_side_as_long_as_their_users_asked(
    steps: list[tuple[bool, dict[Key, int]]],
) -> None:
    ranges: Ranges = {}
    users: list[dict[Key, int]] = []
    for is_new, wanted in steps:
        if is_new or not users:
            users.append(wanted)
            ranges = acquire(ranges, wanted)
        else:
            ranges = release(ranges, list(users.pop(0)))
        counts = {key: sum(key in user for user in users) for key in KEYS}
        assert {key: at.users for key, at in ranges.items()} == {
            k: n for k, n in counts.items() if n
        }
        base = 0
        for key, at in ranges.items():
            assert at.base == base
            assert at.length >= max(user.get(key, 0) for user in users)
            base += at.length


def test_a_vm_draws_from_four_ranges() -> None:
    host = sharing_host()
    power_on(host, make_spec(5, 4 * MIB, image=image(), image_range=3, application_range=8))
    row = row_of(host, 5)
    kinds = (ZERO_RANGE, IMAGE_RANGE, APPLICATION_RANGE, DUPLICATE_RANGE)
    assert keys_of(row) == tuple(
        Key(kind, family, 0) for kind, family in zip(kinds, (0, 3, 8, 5), strict=True)
    )
    bases = [row.zero, row.image_base, row.app_base, row.dup_base]
    assert [host.ranges[key].base for key in keys_of(row)] == bases
    lengths = [host.ranges[key].length for key in keys_of(row)]
    assert lengths[0] == 2 and len(host.state.refs) == sum(lengths)


def test_a_larger_vm_of_the_image_makes_its_range_longer() -> None:
    growth = ContentTable(anon=ContentMix(image=500, unique=500))
    host = sharing_host()
    power_on(host, make_spec(1, 4 * MIB, image=image(growth=growth)))
    key = keys_of(row_of(host, 1))[1]
    short = host.ranges[key].length
    power_on(host, make_spec(2, 8 * MIB, image=image(growth=growth)))
    assert host.ranges[key].length == short + 512
    host.power_off(VmId(2))
    assert host.ranges[key].users == 1


def test_a_range_ends_with_its_last_user() -> None:
    host = sharing_host()
    specs = [make_spec(vm, 4 * MIB, image=image(), image_range=1 + vm // 2) for vm in (1, 2, 3)]
    power_on(host, *specs)
    n_before = len(host.ranges)
    host.power_off(VmId(2))
    assert len(host.ranges) == n_before - 1  # only its duplicates: VM 3 is of its image
    host.power_off(VmId(3))
    assert len(host.ranges) == n_before - 1 - 3
    host.power_off(VmId(1))
    assert (len(host.ranges), len(host.state.refs), counter(host, "distinct")) == (0, 0, 0)


def test_salt_groups_have_ranges_of_their_own() -> None:
    host = sharing_host(salting="vm")
    power_on(host, *(make_spec(vm, 4 * MIB, image=image()) for vm in (1, 2)))
    assert len(host.ranges) == 8
    assert not set(keys_of(row_of(host, 1))) & set(keys_of(row_of(host, 2)))


# Moving them


def test_moving_ranges_keeps_what_guests_read_and_what_is_indexed() -> None:
    """Guests write and are scanned; VMs of several images and sizes come and go in between. What
    the VMs that stay would read, references to it and hints on it are the same afterwards."""
    host, draw = sharing_host(), np.random.default_rng(9)
    on: list[int] = []
    moved = stale_seen = 0
    for step in range(40):
        run(host, 2 * SECOND)
        bases = {key: at.base for key, at in host.ranges.items()}
        before, index = readings(host), index_of_sharing(host)
        if on and (len(on) == 6 or draw.integers(3) == 0):
            gone = on.pop(int(draw.integers(len(on))))
            host.power_off(VmId(gone))
        else:
            gone, size = -1, int(draw.integers(3, 9))
            family = int(draw.integers(1, 4))
            busy = make_phase(active=MIB, writes=200, touch_interval=5 * SECOND, drift=1000)
            spec = make_spec(
                step, size * MIB, busy, image=image(1 + family % 2), image_range=family,
                application_range=9,
            )  # fmt: skip
            power_on(host, spec)
            on.append(step)
        invariants.check(host.state)
        after, now = readings(host), index_of_sharing(host)
        staying = [vm for vm in before if vm != gone]
        assert {vm: after[vm] for vm in staying} == {vm: before[vm] for vm in staying}
        assert now["hints"] == {k: vm for k, vm in index["hints"].items() if vm[0] != gone}
        assert now["stale"] == {vm: k for vm, k in index["stale"].items() if vm[0] != gone}
        if gone < 0:
            assert now["refs"] == index["refs"]
        moved += any(at.base != bases.get(key, at.base) for key, at in host.ranges.items())
        stale_seen += len(now["stale"])
    assert moved >= 8 and stale_seen > 20
    assert len(index["refs"]) > 100


def test_a_vm_that_goes_takes_its_references_along() -> None:
    host = sharing_host(scan_pages_per_s_vm=5000, scan_pages_per_s_total=20_000)
    power_on(host, *(make_spec(vm, 4 * MIB, image=image()) for vm in (1, 2, 3)))
    run_until_booted(host)
    run(host, 10 * SECOND)
    before = index_of_sharing(host)["refs"]
    held = readings(host)[2]
    host.power_off(VmId(2))
    invariants.check(host.state)
    gone = [entry[2:] for entry in held if entry[0] & 7 == SHARED]
    expected = {k: n - gone.count(k) for k, n in before.items()}
    assert index_of_sharing(host)["refs"] == {k: n for k, n in expected.items() if n}
    assert len(gone) > 300


def test_a_stale_hint_survives_the_move_of_its_range() -> None:
    """The page is found stale afterwards, by a lookup of the content that it held."""
    host = sharing_host()
    power_on(host, make_spec(1, MIB, image=image(1)), make_spec(2, MIB, image=image(1)))
    state = host.state
    word = int(state.vms[1].image_base) + 3
    fault.touch(state, 1, 5, 1, word)
    share.scan_page(state, 1, 5)
    fault.touch(state, 1, 5, 1, word + 1)
    power_on(host, make_spec(0, 8 * MIB, image=image(4)))
    host.power_off(VmId(1))
    invariants.check(host.state)
    state = host.state
    word = int(state.vms[1].image_base) + 3
    fault.touch(state, 1, 6, 1, word)
    share.scan_page(state, 1, 6)
    invariants.check(state)
    assert (counter(host, "stale_hints"), counter(host, "hint_frames")) == (1, 1)
