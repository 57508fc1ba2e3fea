"""Page hashes of real guests on a simulated host, against what was measured on the same pages.

Sources: the project's fingerprints of paused guests (kvm-fingerprints) with the counters of Linux
KSM on exactly that memory, and page-hash snapshots of loaded guests (memory-page-hashes). Neither
is part of this repository; without them these tests skip.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from host_builders import row_of
from replayed import (
    DATA,
    FAST_SCAN,
    boot,
    consumed,
    coverage,
    host_of,
    load_in,
    need,
    raw_period,
    saved,
    scan_all,
    scenario,
)

from cluster import hash_counts, replays
from hostsim.host import Host

FINGERPRINTS, SNAPSHOTS = "kvm-fingerprints", "memory-page-hashes"
HUGE_ZERO_FRAMES = 512
"""Frames beyond the contents of guests and processes: the kernel's own zero page of 2 MiB."""


def every(default: list[Any], slow: list[Any]) -> list[Any]:
    """Cases of a test; most of them are for `-m slow`."""
    return [*default, *(pytest.param(case, marks=pytest.mark.slow) for case in slow)]


def counters(name: str, **keys: str) -> list[dict[str, str]]:
    """Rows of a table of the fingerprints with these values."""
    need(FINGERPRINTS)
    with (DATA / FINGERPRINTS / name).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if all(row[key] == value for key, value in keys.items())]


def scanned(folder: Path, file: str, count: int, **content: Any) -> Host:
    """VMs with the first guests of a file, every page of theirs scanned."""
    need(FINGERPRINTS)
    where = {"data": FINGERPRINTS, "hashes": f"{file}.npz"} | content
    host = host_of(load_in(folder, scenario(where, count, sharing=FAST_SCAN)))
    scan_all(host)
    return host


CASES = [(name, n) for n in range(1, 11) for name in ("A_idle", "A_web")]
FEW, OTHER_FEW = [("A_idle", 2), ("A_web", 1)], [("A_idle", 1), ("A_web", 2)]


@pytest.mark.parametrize("case", every(FEW, [case for case in CASES if case not in FEW]))
def test_saved_pages_are_those_of_ksm(case: tuple[str, int], tmp_path: Path) -> None:
    """1. Set-up: the first N guests and the other pages of their processes, each page scanned.

    Expected: hash_nonzero_reclaim non-zero pages saved and hash_distinct frames, of every row for
    this N; and KSM's own counters where it maps no content twice for want of a longer chain
    (max_page_sharing 1000000) and counts zero pages apart (use_zero_pages): pages_sharing, and
    frames but for the 512 of the kernel's huge zero page. Tolerance: exact.
    """
    file, n = case
    rows = counters("ksm_counters.csv", exp=file, vms=str(n))
    host = scanned(tmp_path, file, n, others=True)
    _, nonzero = saved(host)
    frames = consumed(host)
    assert rows and {int(row["hash_nonzero_reclaim"]) for row in rows} == {nonzero}
    assert {int(row["hash_distinct"]) for row in rows} == {frames}
    for row in rows:
        if (row["use_zero_pages"], row["max_page_sharing"]) == ("1", "1000000"):
            assert nonzero == int(row["pages_sharing"])
            assert frames == int(row["frames"]) - HUGE_ZERO_FRAMES


@pytest.mark.parametrize(
    "case", every(OTHER_FEW, [case for case in CASES if case not in OTHER_FEW])
)
def test_saved_pages_are_those_counted_over_n_guests(case: tuple[str, int], tmp_path: Path) -> None:
    """1. The guests' own memory: sharing_vs_vms.csv, scope touched: its non-zero and zero pages
    reclaimed and its distinct contents; untouched pages are what is left of 256 MiB. Exact."""
    file, n = case
    (row,) = counters("sharing_vs_vms.csv", exp=file, vms=str(n), scope="touched")
    host = scanned(tmp_path, file, n)
    assert saved(host) == (int(row["zero"]) - 1, int(row["nz_reclaim"]))
    assert consumed(host) == int(row["distinct"])
    untouched = int(host.state.vms["untouched"].sum())
    assert untouched == n * 260 * 256 - int(row["total"])


@pytest.mark.parametrize("case", every([("A_idle", 2002)], [("A_web", 2002), ("A_idle", 7)]))
def test_saved_pages_while_scanning_is_under_way(case: tuple[str, int], tmp_path: Path) -> None:
    """2. Set-up: ten guests, scanned at random until half and more of their pages were visited.

    Expected at coverage c: sum over contents with m copies of m c - 1 + (1 - c)^m, at the c that
    has been reached (derived: m c copies are visited on average, and all but one of them are saved
    if any is). Tolerance 1 %: chance alone makes about 0.3 % at c = 0.5, with 16 000 contents.
    """
    file, seed = case
    need(FINGERPRINTS)
    where = {"data": FINGERPRINTS, "hashes": f"{file}.npz", "others": True}
    slow = {"scan_pages_per_s_vm": 4000, "scan_pages_per_s_total": 40_000}
    loaded = load_in(tmp_path, scenario(where, 10, sharing=slow), seed=seed)
    guests = list(replays.held(loaded).values())
    host = host_of(loaded)
    boot(host)
    seen = []
    for at_least in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95):
        while coverage(host) < at_least:
            host.advance(1000)
        seen.append(coverage(host))
        expected = hash_counts.expected_at(guests, seen[-1])
        zero, nonzero = saved(host)
        assert nonzero == pytest.approx(expected.nonzero, rel=0.01)
        assert zero == pytest.approx(expected.zero, rel=0.01)
    assert seen[-1] < 1.0


GUESTS = ("web", "db", "py", "idle")
SAMPLES, DUMPS = 100, 13
SLOW_GAIN, FAST_GAIN = 0.25, 0.75


def averages(folder: Path, guest: str, seeds: int) -> tuple[Any, Any, Any, int]:
    """Slow and fast average and the estimate f at the end of each dump's period, (seeds, 12) each;
    and the guest's pages in memory."""
    where = {"data": FINGERPRINTS, "hashes": "C_timeseries.npz", "guest": guest}
    options = {"memory": "128 MiB", "boot": "15 s"}
    sampling = {"pages": SAMPLES, "period": "15 s"}
    found = np.zeros((3, seeds, DUMPS - 1))
    for seed in range(seeds):
        data = scenario(where, sampling=sampling, sharing={"enabled": False}, **options)
        host = host_of(load_in(folder, data, seed=seed))
        host.advance(15_000)
        row = row_of(host, 0)
        assert (row.booted, row.periods, row.samples) == (1, 0, SAMPLES)
        for dump in range(DUMPS - 1):
            host.advance(15_000)
            row = row_of(host, 0)
            assert row.periods == dump + 1
            found[:, seed, dump] = row.slow, row.fast, max(row.slow, row.fast)
        assert row.event == row.replay_len, "all was replayed"
    return found[0], found[1], found[2], int(row.resident)


def smoothed(values: Any, gain: float) -> Any:
    """The moving average that begins with the first value, along the last axis."""
    out = np.array(values, np.float64)
    for i in range(1, out.shape[-1]):
        out[..., i] = (1 - gain) * out[..., i - 1] + gain * out[..., i]
    return out


def smoothed_variance(variance: Any, gain: float) -> Any:
    """Variance of that average of independent values."""
    out = np.array(variance, np.float64)
    for i in range(1, out.shape[-1]):
        out[..., i] = (1 - gain) ** 2 * out[..., i - 1] + gain**2 * out[..., i]
    return out


@pytest.mark.parametrize(
    ("guest", "seeds"),
    [("idle", 6), ("web", 6), *(pytest.param(g, 60, marks=pytest.mark.slow) for g in GUESTS)],
)
def test_sampled_active_memory_is_what_the_guest_referenced(
    guest: str, seeds: int, tmp_path: Path
) -> None:
    """3. Set-up: one guest's 13 dumps 15 s apart, sampled every 15 s of VM time, 100 pages each.

    Truth: f = referenced_pages / pages in memory, of each dump. Expected of one period's sample:
    mean f and sd sqrt(f (1 - f) / n) [P 5.3]; of the averages with gains 1/4 and 3/4 that start at
    the first period: the same averages of f, with variance (1-a)^2 V + a^2 f (1 - f) / n. Tolerance
    on the mean over seeds: 4 sd / sqrt(seeds); on the sd of all samples: 4 / sqrt(2 samples). The
    estimate, the larger of the two averages, lies within 3 sd of the fast one of its mean, or above
    it by what falls slowly, in 95 % of all periods.
    """
    need(FINGERPRINTS)
    archive = np.load(DATA / FINGERPRINTS / "C_timeseries.npz")
    slow, fast, estimate, in_memory = averages(tmp_path, guest, seeds)
    f = archive["referenced_pages"][1:, GUESTS.index(guest)] / in_memory
    variance = f * (1 - f) / SAMPLES
    raw = np.concatenate([fast[:, :1], raw_period(fast[:, :-1], fast[:, 1:])], axis=1)
    error = (raw - f) / np.sqrt(variance)
    assert np.abs(error.mean(axis=0)).max() < 4 / np.sqrt(seeds)
    assert np.sqrt((error**2).mean()) == pytest.approx(1, abs=4 / np.sqrt(2 * error.size))
    for found, gain in ((slow, SLOW_GAIN), (fast, FAST_GAIN)):
        mean, sd = smoothed(f, gain), np.sqrt(smoothed_variance(variance, gain))
        assert (np.abs(found.mean(axis=0) - mean) < 4 * sd / np.sqrt(seeds)).all()
    sd = np.sqrt(smoothed_variance(variance, FAST_GAIN))
    low = smoothed(f, FAST_GAIN) - 3 * sd
    high = np.maximum(smoothed(f, FAST_GAIN), smoothed(f, SLOW_GAIN)) + 3 * sd
    assert ((estimate >= low) & (estimate <= high)).mean() > 0.95


README_TABLE = {
    ("Trace3", 0): (231_392, 202_482, 13_455),
    ("Trace3", 1): (240_187, 209_841, 19_238),
    ("Trace3", 2): (244_018, 208_300, 15_981),
    ("kernelBuild", 0): (236_061, 219_989, 11_157),
    ("kernelBuild", 3): (362_314, 316_739, 12_810),
}
"""Trace and snapshot -> pages, distinct contents, zero pages."""
SNAPSHOT_CASES = list(README_TABLE)


@pytest.mark.parametrize("case", every(SNAPSHOT_CASES[:1], SNAPSHOT_CASES[1:]))
def test_saved_pages_of_a_snapshot(case: tuple[str, int], tmp_path: Path) -> None:
    """4. Set-up: one guest of 2 GiB with a snapshot's pages, each scanned.

    Expected: pages - distinct saved, zero pages less one of them, as the data's README lists.
    Tolerance: exact. Source: memory-page-hashes (32-bit hashes: a few false matches are counted on
    both sides).
    """
    need(SNAPSHOTS)
    trace, snapshot = case
    n_pages, distinct, zero_pages = README_TABLE[case]
    where = {"data": SNAPSHOTS, "hashes": "page_hashes.parquet", "trace": trace}
    data = scenario(where | {"snapshot": snapshot}, memory="2 GiB", sharing=FAST_SCAN)
    loaded = load_in(tmp_path, data)
    host = host_of(loaded)
    scan_all(host)
    assert int(host.state.vms["untouched"].sum()) == 2 * 2**18 - n_pages
    zero, nonzero = saved(host)
    assert (zero, zero + nonzero) == (zero_pages - 1, n_pages - distinct)
    assert consumed(host) == distinct
    assert replays.saved(loaded) == (zero, nonzero)
