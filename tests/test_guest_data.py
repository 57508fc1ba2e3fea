"""File data beyond a guest's memory, kernel structures by size, and Windows' zero-page thread."""

from __future__ import annotations

import numpy as np
import pytest
from host_builders import (
    FAST_DISK,
    MINUTE,
    SECOND,
    UNIQUE_ANON,
    UNIQUE_CACHE,
    counter,
    in_slots,
    lost_ns,
    make_host,
    make_image,
    make_phase,
    make_spec,
    power_on,
    row_of,
    run,
)
from pydantic import ValidationError

from hostsim import allocate
from hostsim.config import Disk
from hostsim.guest_config import ContentMix, ContentTable, GuestImage, Phase
from hostsim.host import Host
from hostsim.touch import linear_rank
from hostsim.units import MIB

SIZE, DATA = 16 * MIB, 24 * MIB


def file_host(locality: str, disk: Disk = FAST_DISK, **options: object) -> Host:
    """One guest of 16 MiB, all cache but a MiB of anonymous memory, working on 24 MiB of files."""
    host = make_host(64 * MIB)
    phase = make_phase(
        active=SIZE,
        memory=SIZE,
        data=DATA,
        locality=locality,
        touch_interval=6 * SECOND,
        writes=0,
        **options,
    )
    power_on(host, make_spec(1, SIZE, phase, image=make_image(growth=UNIQUE_CACHE, disk=disk)))
    run(host, 10 * SECOND)
    return host


def test_popularity_falls_linearly_with_rank() -> None:
    """The lower of two uniform ranks: P(rank >= r) = (1 - r / n)^2. 20 000 draws at n = 1000: each
    decile within five standard errors."""
    words = np.random.default_rng(1).integers(0, 1 << 64, 20_000, dtype=np.uint64)
    ranks = np.array([linear_rank(word, 1000) for word in words])
    assert (ranks.min(), ranks.max()) >= (0, 900)
    for r in range(0, 1000, 100):
        exact = (1 - r / 1000) ** 2
        error = 5 * np.sqrt(exact * (1 - exact) / len(ranks)) + 1e-3
        assert (ranks >= r).mean() == pytest.approx(exact, abs=error)


@pytest.mark.parametrize(("locality", "part"), [("linear", 1 / 9), ("uniform", 1 / 3)])
def test_what_the_cache_cannot_hold_is_read_from_disk(locality: str, part: float) -> None:
    """Over 24 MiB of files of which 16 MiB fit, one touch in three is a miss, and one in nine where
    popularity falls linearly, (1 - 16/24)^2. Within five standard errors; the guest's memory in use
    does not change."""
    host = file_host(locality)
    before, reads = int(row_of(host, 1).touches), counter(host, "guest_page_ins")
    run(host, MINUTE)
    touches = int(row_of(host, 1).touches) - before
    misses = counter(host, "guest_page_ins") - reads
    error = 5 * np.sqrt(touches * part * (1 - part))
    assert touches == pytest.approx(in_slots(DATA) * 10, rel=0.05)
    assert misses == pytest.approx(touches * part, abs=error)
    assert int(row_of(host, 1).resident) == in_slots(SIZE)
    assert counter(host, "swap_outs") == counter(host, "stale_reads") == 0


def test_misses_cost_the_latency_of_the_guests_disk() -> None:
    """The time lost to guest paging is the number of misses times 1 ms: exact, over a step."""
    host = file_host("zipf", Disk(latency=1_000_000, iops=1_000_000))
    before = counter(host, "guest_page_ins"), lost_ns(host, 1)["guest_paging"]
    run(host, MINUTE)
    misses = counter(host, "guest_page_ins") - before[0]
    assert misses > 1000
    owed = int(host.state.debts.sum())
    assert lost_ns(host, 1)["guest_paging"] - before[1] + owed == misses * 1_000_000


def test_a_miss_over_a_page_that_the_host_swapped_reads_it_for_nothing() -> None:
    """VSwapper's stale read: without a driver the host swaps half the cache; the guest reads new
    blocks over those pages, and each is swapped in first. Counted, and a swap-in each."""
    host = make_host(64 * MIB, reserve=54 * MIB)
    phase = make_phase(
        active=SIZE, memory=SIZE, data=DATA, locality="linear", touch_interval=6 * SECOND, writes=0
    )
    image = make_image(growth=UNIQUE_CACHE)
    power_on(host, make_spec(1, SIZE, phase, image=image, balloon="absent"))
    run(host, 2 * MINUTE)
    assert counter(host, "stale_reads") > 100
    assert counter(host, "swap_ins") > counter(host, "stale_reads")


def test_replacement_takes_the_coldest() -> None:
    """A balloon of 4 MiB in a guest whose 16 MiB of files, by rank, fill its memory takes what is
    used least: the pages it holds are the coldest half, and misses stay below 2 (4/16)^2. What the
    host swaps before the balloon is there may leave that smaller, within the band of noise of two
    standard errors where all 100 samples are active: 35 slots (`allocate.deadband`)."""
    host = make_host(64 * MIB, reserve=48 * MIB)
    phase = make_phase(
        active=SIZE, memory=SIZE, locality="linear", touch_interval=4 * SECOND, writes=0
    )
    power_on(host, make_spec(1, SIZE, phase, image=make_image(growth=UNIQUE_CACHE), limit=12 * MIB))
    run(host, 2 * MINUTE)
    row = row_of(host, 1)
    limit = in_slots(12 * MIB)
    tax_k, samples = float(host.state.host[0].tax_k), host.config.sampling.pages
    noise = allocate.deadband(limit, limit, tax_k, samples, host.config.allocation.deadband_sigmas)
    assert int(row.ballooned) == pytest.approx(in_slots(4 * MIB), abs=noise)
    before = int(row.touches), counter(host, "guest_page_ins")
    run(host, MINUTE)
    touches = int(row_of(host, 1).touches) - before[0]
    assert 0 < counter(host, "guest_page_ins") - before[1] < touches * 2 / 16


def test_structures_follow_the_size_of_the_vm() -> None:
    """5 % of the size, kernel pages over and above the footprint; whole pages, exact."""
    content = ContentTable(kernel=ContentMix(unique=250), anon=ContentMix(unique=750))
    image = make_image(4 * MIB, structures="5 %", content=content)
    for size in (16 * MIB, 32 * MIB):
        host = make_host(64 * MIB)
        power_on(host, make_spec(1, size, make_phase(), image=image))
        run(host, 2 * SECOND)
        row, structures = row_of(host, 1), in_slots(size) * 50 // 1000
        assert int(row.kernel) == in_slots(MIB) + structures
        assert int(row.footprint) == int(row.resident) == in_slots(4 * MIB) + structures


def test_structures_are_kernel_pages() -> None:
    with pytest.raises(ValidationError, match="content must say what those hold"):
        GuestImage(structures="5 %", content=UNIQUE_ANON)


def test_data_is_touched_at_random() -> None:
    with pytest.raises(ValidationError, match="locality must be uniform, zipf or linear"):
        Phase(duration=1000, data=MIB, locality="sweep")


@pytest.mark.parametrize("os", ["linux", "windows"])
def test_windows_zeroes_what_its_balloon_gives_back(os: str) -> None:
    """A guest of 32 MiB ballooned to 20 gets its memory back. Linux leaves the 12 MiB untouched
    until it needs them; the zero-page thread of Windows takes a frame for each at once [P 5.4]."""
    host = make_host(64 * MIB, allocation={"claim": "configured"})
    image = make_image(4 * MIB, os=os)
    power_on(host, make_spec(1, 32 * MIB, make_phase(), image=image, limit=20 * MIB))
    run(host, MINUTE)
    assert int(row_of(host, 1).ballooned) == in_slots(12 * MIB)
    host.set_vm(host.vm_ids()[0], limit=32 * MIB)
    run(host, MINUTE)
    row = row_of(host, 1)
    assert int(row.ballooned) == 0
    expected = 32 * MIB if os == "windows" else 4 * MIB
    assert int(row.resident) == in_slots(expected)
    assert int(row.untouched) == in_slots(32 * MIB - expected)
