"""What a VM feels (design section 5): each cause alone, computed by hand from price x count.

In every run one mechanism costs time and no other does, so the lost time is that mechanism's price
times its counter, the executed time is the rest, and the work done follows the executed time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from host_builders import (
    ALL_IMAGE,
    MINUTE,
    SECOND,
    UNIQUE_CACHE,
    alloc_slots,
    counter,
    in_slots,
    lost_ns,
    make_host,
    make_image,
    make_phase,
    make_spec,
    power_on,
    row_index,
    row_of,
    run,
    states_of,
)

from cluster.aggregate import SLOWDOWN_MAX, slowdowns
from hostsim import balloon, fault, guest, swap
from hostsim.config import Disk
from hostsim.host import Host
from hostsim.rows import CAUSES
from hostsim.state import BALLOONED, GUEST_PAGING
from hostsim.units import MIB

NS = 10**9


def only(cause: str, host: Host, vm: int = 1) -> int:
    """Time lost to one cause; there must be no other, and clock and loss must fill the time on."""
    lost = lost_ns(host, vm)
    others = {name: ns for name, ns in lost.items() if ns and name != cause}
    assert others == {}
    row = row_of(host, vm)
    assert row.clock_ns + lost[cause] == row.on_ns == host.state.host[0].now_ms * 10**6
    return lost[cause]


def swap_out_all(host: Host, vm: int) -> int:
    """Swap out every page that a VM has, whatever the policy says."""
    n = alloc_slots(host, vm)
    done = swap.page_out_vm(host.state, row_index(host, vm), n, 1 << 40)
    assert done == n
    return int(done)


def scans(pages_per_s: int) -> dict[str, Any]:
    """Sharing with this scan rate per VM and, for two of them, in all."""
    rate = {"scan_pages_per_s_vm": pages_per_s, "scan_pages_per_s_total": 2 * pages_per_s}
    return {"enabled": True} | rate


def test_nothing_is_lost_while_nothing_is_short() -> None:
    host = make_host(cpus=1)
    power_on(host, make_spec(1, 16 * MIB, make_phase(active=8 * MIB, cpu=1000)))
    run(host, 5 * MINUTE)
    assert only("cpu", host) == 0
    assert row_of(host, 1).touches == (300 - 1) * in_slots(8 * MIB)


# Swap-in


@pytest.mark.parametrize("sample", [1, 4])
def test_a_swap_in_costs_the_devices_latency_for_each_page(sample: int) -> None:
    """A guest reads back all of its 8 MiB: 2048 pages x 100 us, and nothing else. A slot of four
    pages counts four times. Exact."""
    host = make_host(swap=Disk(latency=100_000, iops=1_000_000), sample=sample)
    power_on(host, make_spec(1, 8 * MIB, make_phase(memory=8 * MIB, active=8 * MIB)))
    run(host, 10 * SECOND)
    assert only("swap_in", host) == 0
    n = swap_out_all(host, 1)
    run(host, MINUTE)
    assert counter(host, "swap_ins") == n == in_slots(8 * MIB, sample)
    assert only("swap_in", host) == 2048 * 100_000


def test_a_latency_longer_than_a_step_is_a_debt_of_the_next() -> None:
    """One page of 2.5 s, touched at the end of a step: lost over the next three. Exact."""
    host = make_host(swap=Disk(latency=5 * NS // 2, iops=1_000_000))
    power_on(host, make_spec(1, MIB, make_phase(active=4096, locality="sweep")))
    run(host, 5 * SECOND)
    swap_out_all(host, 1)
    found = []
    for _ in range(5):
        before = only("swap_in", host)
        run(host, SECOND)
        found.append(only("swap_in", host) - before)
    assert found == [0, NS, NS, NS // 2, 0]


def test_a_busy_swap_device_is_waited_for() -> None:
    """50 reads a second and no latency to speak of: a guest that needs 2048 pages gets 50 a step
    and waits for the rest of each; it is all lost to swap-in. Exact count, time within a step."""
    host = make_host(swap=Disk(latency=1000, iops=50))
    power_on(host, make_spec(1, 8 * MIB, make_phase(memory=8 * MIB, active=8 * MIB)))
    run(host, 5 * SECOND)
    host.state.host[0].swap_io_left = 1 << 40
    swap_out_all(host, 1)
    host.state.host[0].swap_io_left = 0
    lost = only("swap_in", host)
    run(host, 20 * SECOND)
    assert counter(host, "swap_ins") == 20 * 50
    assert only("swap_in", host) - lost >= 19 * NS
    assert counter(host, "stalled_touches") == 20


# Guest paging


@pytest.mark.parametrize("image", [make_image(MIB), make_image(MIB, growth=UNIQUE_CACHE)])
def test_guest_paging_costs_the_guests_disk_for_each_page_read(image: Any) -> None:
    """A guest of 16 MiB uses all of it in turns and is limited to 12: every page read back costs
    its own disk's 100 us, writes go on behind its back, and the host pages nothing. Exact."""
    host = make_host()
    phase = make_phase(memory=16 * MIB, active=16 * MIB, touch_interval=60 * SECOND)
    power_on(host, make_spec(1, 16 * MIB, phase, image=image))
    host.set_vm(host.vm_ids()[0], limit=12 * MIB)
    run(host, 5 * MINUTE)
    assert row_of(host, 1).ballooned == in_slots(4 * MIB)
    assert counter(host, "guest_page_ins") > 1000
    assert only("guest_paging", host) == counter(host, "guest_page_ins") * 100_000


def test_a_full_guest_disk_is_waited_for() -> None:
    """A disk of 20 operations a second: page-outs and page-ins of a squeezed guest share them."""
    host = make_host()
    image = make_image(MIB, disk=Disk(latency=1000, iops=20))
    phase = make_phase(memory=16 * MIB, active=16 * MIB)
    power_on(host, make_spec(1, 16 * MIB, phase, image=image))
    host.set_vm(host.vm_ids()[0], limit=15 * MIB)
    run(host, MINUTE)
    done = counter(host, "guest_page_ins") + counter(host, "guest_page_outs")
    run(host, MINUTE)
    more = counter(host, "guest_page_ins") + counter(host, "guest_page_outs") - done
    assert more == 60 * 20
    assert only("guest_paging", host) > 55 * NS


@pytest.mark.parametrize("k", [1, 4])
def test_a_page_given_up_before_a_stall_costs_its_time_later(k: int) -> None:
    """A guest trades with its balloon: the page that it gives was in host swap, so that writing it
    out costs a read of 100 us; then its own disk is busy. The read is a debt of k pages, once."""
    host = make_host(sample=k)
    power_on(host, make_spec(1, 4 * MIB, make_phase(memory=4 * MIB)))
    run(host, 5 * SECOND)
    st, row = host.state, row_of(host, 1)
    assert balloon.inflate(st, 0, 10) == 10
    page = int(np.flatnonzero(states_of(host, 1) == BALLOONED)[0])
    st.host[0].swap_io_left = 1 << 40
    swap_out_all(host, 1)
    row.disk_io_left = 1
    assert guest.access(st, 0, page, 0) == fault.NO_GUEST_IO
    assert (st.debts[0, GUEST_PAGING], st.debts[0].sum()) == (100_000 * k, 100_000 * k)
    assert row.ballooned == 10
    row.disk_io_left = 1
    assert guest.access(st, 0, page, 0) == 100_000 * k
    assert (st.debts[0].sum(), counter(host, "double_pagings")) == (100_000 * k, 1)


# Copy-on-write


def test_a_copy_costs_its_price_and_the_last_holder_pays_nothing() -> None:
    """Two VMs share the same 4 MiB; then both write all of it. Each frame is copied once, by
    whoever writes first, and rewritten in place by the other: 1024 copies x 3 us in all. Exact."""
    host = make_host(sharing=scans(20_000), costs={"cow": 3000, "scan": 0})
    image = make_image(4 * MIB, content=ALL_IMAGE)
    phases = [
        make_phase(memory=4 * MIB, duration=30 * SECOND),
        make_phase(memory=4 * MIB, active=4 * MIB, writes=1000),
    ]
    power_on(host, *[make_spec(vm, 4 * MIB, phases, image=image) for vm in (1, 2)])
    run(host, 20 * SECOND)
    assert [int(row_of(host, vm).shared) for vm in (1, 2)] == [1024, 1024]
    assert only("cow", host, 1) == only("cow", host, 2) == 0
    run(host, 2 * MINUTE)
    assert (counter(host, "cow_breaks"), counter(host, "cow_reuses")) == (1024, 1024)
    assert only("cow", host, 1) + only("cow", host, 2) == 1024 * 3000
    assert min(only("cow", host, 1), only("cow", host, 2)) > 0


# CPU: scanning and contention


def scanning_host(cpus: int) -> Host:
    """10 000 pages a second at 20 us each: a fifth of a core."""
    host = make_host(sharing=scans(10_000), cpus=cpus, costs={"scan": 20_000})
    power_on(host, make_spec(1, 16 * MIB, make_phase(memory=16 * MIB, cpu=1000)))
    run(host, 10 * SECOND)
    host.measure()
    return host


def test_scanning_takes_its_cpu_time_from_vms_that_need_all_cores() -> None:
    """One core, one VM that wants all of it: a fifth of each second. Exact."""
    host = scanning_host(cpus=1)
    run(host, MINUTE)
    assert counter(host, "scanned") == 60 * 10_000
    lost = lost_ns(host, 1)
    assert (lost["scan"], sum(lost.values())) == (12 * NS, 12 * NS)


def test_scanning_on_an_idle_core_costs_nobody_anything() -> None:
    host = scanning_host(cpus=2)
    run(host, MINUTE)
    assert counter(host, "scanned") == 60 * 10_000
    assert sum(lost_ns(host, 1).values()) == 0


@pytest.mark.parametrize(
    ("cpus", "demands", "lost_part"),
    [
        (2, (1000, 1000, 1000), 1 / 3),
        (1, (1000, 1000), 1 / 2),
        (1, (600, 600), 1 / 6),
        (1, (500, 500), 0),
        (3, (1000, 1000, 1000), 0),
    ],
)
def test_contention_takes_from_each_vm_in_proportion_to_its_demand(
    cpus: int, demands: tuple[int, ...], lost_part: float
) -> None:
    """What the demands exceed the cores by is lost in proportion: of the time that a VM wants to
    run (its demand), not of all time. Within 1 ns a step."""
    host = make_host(cpus=cpus)
    specs = [make_spec(vm, MIB, make_phase(cpu=cpu)) for vm, cpu in enumerate(demands)]
    power_on(host, *specs)
    run(host, 5 * SECOND)
    host.measure()
    run(host, MINUTE)
    for vm, cpu in enumerate(demands):
        lost = lost_ns(host, vm)
        assert lost["cpu"] == pytest.approx(60 * NS * cpu / 1000 * lost_part, abs=60)
        assert sum(lost.values()) == lost["cpu"]


def test_contention_leaves_an_idle_vm_alone_and_counts_every_vcpu() -> None:
    """One core for a VM of two vCPUs at 75 % each, one at 50 %, and an idle one: 2 cores wanted,
    half of what each wants is lost. Of its own time: 0.375 and 0.25 of it, and nothing."""
    host = make_host(cpus=1)
    power_on(
        host,
        make_spec(1, MIB, make_phase(cpu=750), vcpus=2),
        make_spec(2, MIB, make_phase(cpu=500)),
        make_spec(3, MIB, make_phase(cpu=0)),
    )
    run(host, 5 * SECOND)
    host.measure()
    run(host, MINUTE)
    found = [lost_ns(host, vm)["cpu"] for vm in (1, 2, 3)]
    assert found == pytest.approx([60 * NS * 0.375, 60 * NS * 0.25, 0], abs=60)
    assert host.measure()[0]["cpu_demand_permille"][0] == 2000


def test_a_blocked_vm_competes_for_no_cpu() -> None:
    """Two VMs want the one core; one of them waits for its overhead memory, so the other has the
    core to itself."""
    host = make_host(cpus=1)
    power_on(host, *[make_spec(vm, MIB, make_phase(cpu=1000)) for vm in (1, 2)])
    run(host, 5 * SECOND)
    host.measure()
    row_of(host, 2).overhead_due = 1 << 40
    host.advance(10 * SECOND)
    assert lost_ns(host, 2)["blocked"] == 10 * NS
    assert lost_ns(host, 1)["cpu"] == 0


def test_a_vm_waits_blocked_until_its_overhead_is_in_place() -> None:
    """A whole step is lost for each step that it waits; the clock stands. Exact."""
    host = make_host()
    power_on(host, make_spec(1, MIB))
    row_of(host, 1).overhead_due = 1 << 40
    host.advance(7 * SECOND)
    assert only("blocked", host) == 7 * NS
    assert row_of(host, 1).clock_ns == 0


# Slowdown


def test_slowdown_is_time_on_over_time_executed() -> None:
    """A VM that loses half of its time runs at a slowdown of 2; one that loses none, at 1; one
    that never runs, at the cap. Source: design, section 5."""
    host = make_host(cpus=1)
    power_on(host, *[make_spec(vm, MIB, make_phase(cpu=1000)) for vm in (1, 2)])
    run(host, 5 * SECOND)
    host.measure()
    run(host, MINUTE)
    vms = host.measure()[1]
    assert vms["lost_ns"].shape == (2, len(CAUSES))
    found = slowdowns(vms["on_ns"], vms["lost_ns"].sum(axis=1))
    assert found == pytest.approx([2.0, 2.0])
    edges = slowdowns(np.array([NS, NS]), np.array([0, NS]))
    assert edges.tolist() == [1.0, SLOWDOWN_MAX]


def test_measuring_starts_every_account_again() -> None:
    host = scanning_host(cpus=1)
    run(host, MINUTE)
    first = host.measure()[1]
    assert first["lost_ns"].sum() == 12 * NS
    again = host.measure()[1]
    assert again["lost_ns"].sum() == again["on_ns"].sum() == again["touches"].sum() == 0
