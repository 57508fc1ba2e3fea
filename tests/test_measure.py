"""Rows of a measurement: they add up, count unscaled pages, and end an interval."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from host_builders import (
    SECOND,
    alloc_slots,
    arrays_of,
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

from hostsim.guest_config import ContentMix, ContentTable
from hostsim.host import Host
from hostsim.rows import CAUSES, LEVELS, Rows
from hostsim.units import MIB, PAGE_SIZE, VmId

EVENTS = (
    *("zero_fills", "scanned_pages", "shares_made", "stale_hints", "cow_breaks"),
    *("inflated_pages", "deflated_pages", "swap_out_pages", "swap_in_pages"),
    *("swap_dropped_pages", "swap_skipped_pages"),
    *("double_paging_pages", "stale_read_pages", "guest_paging_pages", "stalled_touches"),
    *("transmitted_pages", "copied_pages", "remapped_pages"),
)
SUMS = ["configured", "allocated", "active", "shared", "ballooned", "swapped", "untouched"]


def busy_host(sample: int = 1, seed: int = 1) -> Host:
    """Four guests on a host too small for them, so that no column stays empty."""
    content = ContentTable(
        cache=ContentMix(image=300, unique=100),
        anon=ContentMix(zero=150, image=150, duplicate=100, unique=200),
    )
    host = make_host(
        64 * MIB * sample,
        reserve=40 * MIB * sample,
        paging={"map_clean": True, "skip_overwritten": True},
        sample=sample,
        seed=seed,
        cpus=4,
        reclaim={"high": 100, "soft": 80, "hard": 40, "low": 20},
        sharing={
            "enabled": True,
            "scan_pages_per_s_vm": 200 * sample,
            "scan_pages_per_s_total": 600 * sample,
        },
        balloon={"inflate": MIB * sample},
        io={"low_memory": MIB * sample, "remap": "random"},
    )
    image = make_image(10 * MIB * sample, content=content)
    often: dict[str, Any] = {"drift": 1000, "transmit": MIB * sample}
    drivers = ("present", "present", "absent", "disabled")
    for vm, driver in enumerate(drivers, start=1):
        busy = make_phase(active=vm * 2 * MIB * sample, touch_interval=2 * SECOND, **often)
        options: dict[str, Any] = {"balloon": driver, "overhead": MIB * sample}
        power_on(host, make_spec(vm, 12 * MIB * sample, busy, image=image, **options))
    return host


def measured(host: Host, seconds: int) -> tuple[Rows, Rows]:
    run(host, seconds * SECOND)
    return host.measure()


@pytest.fixture(scope="module", params=[1, 16])
def rows(request: pytest.FixtureRequest) -> list[tuple[Host, Rows, Rows]]:
    """Six intervals of ten seconds, the host as it was at the last one's end; k of 1 and 16."""
    host = busy_host(request.param)
    return [(host, *measured(host, 10)) for _ in range(6)]


# They add up


def test_every_page_is_accounted_for(rows: list[tuple[Host, Rows, Rows]]) -> None:
    """configured = consumed + shared_saved + ballooned + swapped + compressed + untouched."""
    parts = ["consumed", "shared_saved", "ballooned", "swapped", "compressed", "untouched"]
    for _, host, _ in rows:
        assert host["configured_pages"] == sum(host[f"{name}_pages"] for name in parts)
        assert host["consumed_pages"] + host["shared_saved_pages"] == host["allocated_pages"]


def test_machine_memory_is_consumed_overhead_or_free(rows: list[tuple[Host, Rows, Rows]]) -> None:
    for host, row, _ in rows:
        used = row["consumed_pages"] + row["overhead_pages"] + row["free_pages"]
        assert used == counter(host, "machine") * counter(host, "sample")


def test_a_hosts_numbers_are_the_sums_of_its_vms(rows: list[tuple[Host, Rows, Rows]]) -> None:
    for _, host, vms in rows:
        for name in SUMS[1:]:
            assert host[f"{name}_pages"] == vms[f"{name}_pages"].sum(), name


def test_what_vms_consume_sums_to_what_the_host_consumes(
    rows: list[tuple[Host, Rows, Rows]],
) -> None:
    """Shared frames are divided by the pages that share them; less than a slot a VM is lost."""
    for host, row, vms in rows:
        lost = row["consumed_pages"] - vms["consumed_pages"].sum()
        assert 0 <= lost < len(vms) * counter(host, "sample")
        assert (vms["consumed_pages"] <= vms["allocated_pages"]).all()


def test_a_vms_pages_sum_to_its_size(rows: list[tuple[Host, Rows, Rows]]) -> None:
    for host, _, vms in rows:
        size = 12 * MIB // PAGE_SIZE * counter(host, "sample")
        states = ["allocated", "ballooned", "swapped", "untouched"]
        assert (sum(vms[f"{name}_pages"] for name in states) == size).all()


def test_levels_share_out_the_interval(rows: list[tuple[Host, Rows, Rows]]) -> None:
    for _, host, _ in rows:
        assert sum(host[f"{level}_ms"] for level in LEVELS) == 10 * SECOND
    assert sum(row[f"{level}_ms"][0] for _, row, _ in rows for level in LEVELS[1:]) > 0


def test_no_vm_loses_more_time_than_there_is(rows: list[tuple[Host, Rows, Rows]]) -> None:
    for _, _, vms in rows:
        assert (vms["on_ns"] == 10 * 1_000_000_000).all()
        assert (vms["lost_ns"].sum(axis=1) <= vms["on_ns"]).all()
        assert vms["lost_ns"].shape == (4, len(CAUSES))
    assert sum(vms["lost_ns"].sum() for _, _, vms in rows) > 0


def test_every_event_of_a_busy_host_is_counted(rows: list[tuple[Host, Rows, Rows]]) -> None:
    """Paging by guests, deflation and use of freed pages need luck; all else happens here."""
    total = {name: sum(int(row[name][0]) for _, row, _ in rows) for name in EVENTS}
    rare = {"double_paging_pages", "stale_read_pages", "deflated_pages", "stalled_touches"}
    rare |= {"swap_skipped_pages", "guest_paging_pages"}
    assert min(total[name] for name in EVENTS if name not in rare) > 0, total


def test_zero_pages_saved_are_a_part_of_all_saved(rows: list[tuple[Host, Rows, Rows]]) -> None:
    for _, host, _ in rows:
        assert 0 <= host["zero_saved_pages"][0] <= host["shared_saved_pages"][0]
    host, row, _ = rows[-1]
    refs = int(host.state.refs[host.zero_pages()[0]])
    assert row["zero_saved_pages"][0] == refs * counter(host, "sample") - 1 > 0


# Pages, not slots


@pytest.mark.parametrize(("seed", "has_partners"), [(1, False), (3, True)])
def test_pages_and_events_are_scaled_times_and_tags_are_not(seed: int, has_partners: bool) -> None:
    host = busy_host(16, seed)
    run(host, 30 * SECOND)
    slots = {name: counter(host, name) for name in ("scanned", "zero_fills", "inflated", "free")}
    row = row_of(host, 3)
    zero, partner = (int(host.state.refs[host.zero_pages()[0] + i]) for i in (0, 1))
    touches, target, on_ns = int(row.touches), int(row.target), int(row.on_ns)
    alloc, lost = alloc_slots(host, 3), host.state.lost[2].copy()
    table, vms = host.measure()
    assert table["scanned_pages"][0] == 16 * slots["scanned"]
    assert table["zero_fills"][0] == 16 * slots["zero_fills"]
    assert table["inflated_pages"][0] == 16 * slots["inflated"]
    # The one frame of the zero page is one page; what partners outside the sample hold is none.
    assert zero > 0 and (partner > 0) == has_partners
    assert table["free_pages"][0] == 16 * slots["free"] + 15 + 16 * has_partners
    assert table["configured_pages"][0] == 4 * 12 * MIB // PAGE_SIZE * 16
    assert (table["vms"][0], table["high_ms"][0] <= 30 * SECOND) == (4, True)
    third = vms[2]
    assert (third["vm"], third["touches"], third["target_pages"]) == (3, 16 * touches, 16 * target)
    assert (third["allocated_pages"], third["on_ns"]) == (16 * alloc, on_ns)
    assert third["lost_ns"].tolist() == lost.tolist()


def test_cpu_demand_is_a_part_of_the_hosts_cores() -> None:
    """Two VMs of two cores each at 50 % and 25 % of theirs: 1.5 of 4 cores are asked for."""
    host = make_host(cpus=4)
    for vm, cpu in ((1, 500), (2, 250)):
        power_on(host, make_spec(vm, MIB, make_phase(cpu=cpu), vcpus=2))
    run_until_booted(host)
    host.measure()
    assert measured(host, 10)[0]["cpu_demand_permille"][0] == 375


# Intervals


def test_a_measurement_starts_the_counters_again() -> None:
    host = busy_host()
    run(host, 30 * SECOND)
    first, _ = host.measure()
    again, vms = host.measure()
    assert {name: int(again[name][0]) for name in EVENTS} == dict.fromkeys(EVENTS, 0)
    assert sum(again[f"{level}_ms"][0] for level in LEVELS) == 0
    assert (vms["on_ns"].sum(), vms["lost_ns"].sum(), vms["touches"].sum()) == (0, 0, 0)
    still = [name for name in again.dtype.names or () if name.endswith("_pages")]
    for name in set(still) - set(EVENTS):
        assert again[name] == first[name], name


def test_measuring_often_or_once_tells_the_same_story() -> None:
    """Events of six intervals sum to those of one of six times the length, and memory ends equal:
    a measurement changes nothing but the counters."""
    often, once = busy_host(), busy_host()
    parts = [measured(often, 10) for _ in range(6)]
    whole, whole_vms = measured(once, 60)
    for name in EVENTS:
        assert sum(int(row[name][0]) for row, _ in parts) == whole[name][0], name
    for level in LEVELS:
        assert sum(int(row[f"{level}_ms"][0]) for row, _ in parts) == whole[f"{level}_ms"][0]
    for name in ("on_ns", "lost_ns", "touches"):
        assert (sum(vms[name] for _, vms in parts) == whole_vms[name]).all(), name
    assert arrays_of(often.state) == arrays_of(once.state)


def test_only_vms_that_are_on_have_rows_in_order_of_id() -> None:
    host = make_host()
    power_on(host, *(make_spec(vm, MIB) for vm in (9, 2, 5)))
    host.power_off(VmId(5))
    _, vms = measured(host, 5)
    assert vms["vm"].tolist() == [2, 9]
    assert vms["host"].tolist() == [0, 0]


def test_a_host_without_vms_has_a_row() -> None:
    table, vms = measured(make_host(), 10)
    assert (len(vms), table["vms"][0], table["configured_pages"][0]) == (0, 0, 0)
    assert table["free_pages"][0] == 64 * MIB // PAGE_SIZE
    assert table["high_ms"][0] == 10 * SECOND
    assert np.all(table["consumed_pages"] == 0)
