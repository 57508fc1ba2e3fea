"""Guests are closed loops (design section 5): work not done is done later, or reported as left.

On the VM's own clock (phases) everything simply comes later; on the wall clock (traces) demand does
not wait, and missed work is a backlog. Time is lost to CPU contention here; any loss does the same.
"""

from __future__ import annotations

from typing import Any

import pytest
from host_builders import (
    MINUTE,
    SECOND,
    in_slots,
    lost_ns,
    make_host,
    make_phase,
    make_rows,
    make_spec,
    power_on,
    row_of,
    run,
)

from hostsim.host import Host
from hostsim.program import KEEP
from hostsim.units import MIB

NS = 10**9


def contended(workload: Any, neighbours: int = 1) -> Host:
    """A VM that wants the one core, for which its neighbours compete in minutes 1 to 6."""
    host = make_host(cpus=1)
    rows = make_rows((60, KEEP, 0), (300, KEEP, 0), (1, KEEP, 0))
    rows["cpu_permille"] = [0, 1000, 0]
    power_on(host, make_spec(1, 16 * MIB, workload))
    power_on(host, *[make_spec(2 + i, MIB, rows) for i in range(neighbours)])
    return host


def test_work_on_the_vms_own_clock_comes_later() -> None:
    """Half the speed for five minutes: touches follow the VM's clock, and a phase of five minutes
    ends when the VM has run for five. Within the touches of two seconds."""
    phases = [
        make_phase(active=4 * MIB, cpu=1000, duration=5 * MINUTE),
        make_phase(active=8 * MIB, cpu=1000),
    ]
    host = contended(phases)
    run(host, 9 * MINUTE)
    row, per_s = row_of(host, 1), in_slots(4 * MIB)
    assert lost_ns(host, 1)["cpu"] == pytest.approx(150 * NS, abs=2 * NS)
    second_phase_s = (row.clock_ns - row.boot_end_ns) / NS - 300
    assert second_phase_s == pytest.approx(390 - 302, abs=3)
    assert row.touches == pytest.approx((300 + 2 * second_phase_s) * per_s, abs=2 * per_s)
    assert row.backlog_ns == 0


def test_work_on_the_wall_clock_is_a_backlog_that_is_worked_off() -> None:
    """A trace that loses 3/4 of its time: catching up as fast as it may, at most a step's worth
    extra a step, it does half of its work. At minute 6, 150 s are left undone and reported; they
    are gone 150 s later, and every touch has been made. Within the work of three seconds; what is
    done and what is left make up all that was asked for since the four VMs booted, in 4 s."""
    host = contended(make_rows((3600, KEEP, 4 * MIB), cpu=1000), neighbours=3)
    run(host, 6 * MINUTE)
    assert lost_ns(host, 1)["cpu"] == pytest.approx(225 * NS, abs=5 * NS)
    left_ns, per_s = int(row_of(host, 1).backlog_ns), in_slots(4 * MIB)
    assert left_ns == pytest.approx(150 * NS, abs=2 * NS)
    assert row_of(host, 1).touches == pytest.approx((356 - left_ns / NS) * per_s, abs=2)
    for _ in range(5):
        run(host, 25 * SECOND)
        before, left_ns = left_ns, int(row_of(host, 1).backlog_ns)
        assert before - left_ns == pytest.approx(25 * NS, abs=3 * NS)
    assert int(host.measure()[1]["work_left_ns"][0]) == left_ns > 0
    row_of(host, 1).touches = 0
    run(host, MINUTE)
    assert row_of(host, 1).backlog_ns == 0
    assert row_of(host, 1).touches == pytest.approx((60 + left_ns / NS) * per_s, abs=3 * per_s)


def test_a_trace_that_loses_less_than_half_of_its_time_keeps_up() -> None:
    """With a step's worth extra in each step, a loss of half is made up at once: no more than a
    step's work is ever left, and no touch is missed."""
    host = contended(make_rows((3600, KEEP, 4 * MIB), cpu=1000))
    per_s = in_slots(4 * MIB)
    for minute in range(1, 8):
        run(host, MINUTE)
        assert row_of(host, 1).backlog_ns < 1.001 * NS
        assert row_of(host, 1).touches == pytest.approx((60 * minute - 2) * per_s, abs=3 * per_s)
