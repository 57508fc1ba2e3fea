"""What memory tiers are for, in whole runs: target G5, and steps and miniatures of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from host_builders import (
    MINUTE,
    SECOND,
    counter,
    lost_ns,
    make_host,
    make_phase,
    make_spec,
    power_on,
    run,
)

from hostsim.host import Host
from hostsim.units import MIB

DRAM_MIB = 64


@dataclass
class Found:
    """Of a run: parts of the guests' time lost, in all and to NVMe; its host's row."""

    lost: float
    by_tier: float
    row: Any


def measured(host: Host, minutes: int) -> Found:
    host.measure()
    run(host, minutes * MINUTE)
    lost = [lost_ns(host, vm) for vm in host.vm_ids()]
    time_ns = len(lost) * minutes * MINUTE * 1_000_000
    by_tier = sum(one["tier"] for one in lost) / time_ns
    return Found(sum(sum(one.values()) for one in lost) / time_ns, by_tier, host.measure()[0][0])


def four_guests(
    active: int, nvme: int = 1000, memory: int = DRAM_MIB, iops: int = 100_000, **options: Any
) -> Host:
    """Guests that use 104 MiB, and touch `active` of them about once a second, after 6 minutes."""
    phase_options = {"drift": options.pop("drift", 0), "locality": options.pop("by", "uniform")}
    host = make_host(memory * MIB, tier={"nvme": nvme, "iops": iops}, **options)
    phase = make_phase(memory=26 * MIB, active=active * MIB // 4, growth=MIB, **phase_options)
    power_on(host, *(make_spec(vm, 32 * MIB, phase) for vm in range(1, 5)))
    run(host, 6 * MINUTE)
    return host


@pytest.mark.parametrize("by", ["uniform", "zipf"])
@pytest.mark.parametrize("drift", [0, 1000])
def test_g5_with_half_of_dram_active_a_tier_is_as_good_as_dram(by: str, drift: int) -> None:
    """NVMe 1:1, VMware's rule: with 32 of 64 MiB active guests lose less than a thousandth of their
    time, though 40 MiB and more lie on NVMe; with as much DRAM as both tiers they lose none."""
    found = measured(four_guests(32, by=by, drift=drift), 4)
    assert found.row.nvme_pages > 40 * MIB // 4096
    assert found.lost == found.by_tier < 0.001
    assert (found.by_tier > 0) == (drift > 0)
    assert measured(four_guests(32, 0, 2 * DRAM_MIB, by=by, drift=drift), 4).lost == 0


def test_g5_beyond_dram_guests_slow_down_by_what_does_not_fit() -> None:
    """80 and 96 MiB active on 64: at a touch a second of each page, a fifth and a third of 20480
    and 24576 touches a second wait for 90 us, less what the guests lose meanwhile."""
    lost = []
    for active in (48, 80, 96):
        found = measured(four_guests(active), 4)
        missing = max(1 - DRAM_MIB / active, 0)
        each = active * 256 / 4 * missing * 90e-6
        expected = each / (1 + each)
        assert found.lost == found.by_tier == pytest.approx(expected, rel=0.05, abs=1e-4)
        lost.append(found.lost)
    assert lost[0] == 0 < 0.07 < lost[1] < lost[2]


def test_a_device_that_is_too_slow_is_what_guests_wait_for() -> None:
    """The same third of touches, on NVMe that does a tenth of them: guests stall."""
    fast, slow = (measured(four_guests(96, iops=iops), 4) for iops in (100_000, 700))
    assert slow.row.stalled_touches > 0 == fast.row.stalled_touches
    assert slow.by_tier > 2 * fast.by_tier
    assert slow.row.tier_touches <= 700 * 4 * 60


def test_guests_that_wake_up_get_dram_from_those_that_fell_asleep() -> None:
    """Two guests touch 16 MiB each for 6 minutes, then the other two do, whose memory lies on NVMe
    by then. In the third minute they lose nothing to speak of: what they touch is in DRAM."""
    host = make_host(DRAM_MIB * MIB, tier={"nvme": 1000})
    for vm in range(1, 5):
        actives = (16, 0) if vm <= 2 else (0, 16)
        phases = [
            make_phase(memory=26 * MIB, active=mib * MIB, growth=MIB, duration=6 * MINUTE)
            for mib in actives
        ]
        power_on(host, make_spec(vm, 32 * MIB, phases))
    run(host, 6 * MINUTE)
    first = measured(host, 1)
    assert first.row.tier_up_pages > 1000 and first.by_tier > 0
    measured(host, 1)
    third = measured(host, 1)
    assert third.lost < 0.001 and third.lost < first.lost / 10


@pytest.mark.parametrize("active", [60, 80])
def test_a_miniature_waits_as_long_and_moves_as_much(active: int) -> None:
    """One page in 16: time lost to NVMe, what lies there and what goes down within 3 % of all pages
    simulated; each in its own number of slots."""
    exact, mini = (measured(four_guests(active, drift=1000, sample=k), 4) for k in (1, 16))
    assert mini.by_tier == pytest.approx(exact.by_tier, rel=0.03, abs=1e-4)
    assert mini.row.nvme_pages == pytest.approx(exact.row.nvme_pages, rel=0.03)


@pytest.mark.parametrize("active", [32, 80])
def test_long_ticks_find_what_short_ones_do(active: int) -> None:
    """Ticks of 1, 10 and 60 s: time lost to NVMe within a tenth, or a thousandth of the time."""
    found = [measured(four_guests(active, tick_ms=s * SECOND), 5) for s in (1, 10, 60)]
    for other in found[1:]:
        assert other.by_tier == pytest.approx(found[0].by_tier, rel=0.1, abs=1e-3)
        assert other.row.nvme_pages == pytest.approx(found[0].row.nvme_pages, rel=0.02)


def test_no_step_is_by_law_on_a_host_with_a_tier() -> None:
    """Which pages were accessed matters there: it looks."""
    for nvme in (0, 1000):
        host = four_guests(16, nvme, 2 * DRAM_MIB, tick_ms=300 * SECOND)
        assert counter(host, "by_law") == (nvme == 0)
