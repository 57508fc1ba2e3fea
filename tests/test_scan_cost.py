"""What scanning takes from guests on a full host: next to nothing, and all there is. Exact."""

from __future__ import annotations

from host_builders import (
    MINUTE,
    SECOND,
    counter,
    lost_ns,
    make_host,
    make_phase,
    make_spec,
    power_on,
    row_of,
    run,
)
from hypothesis import given
from hypothesis import strategies as st

from hostsim import tick
from hostsim.units import MIB

NS = 10**9


def test_little_scanning_on_a_full_host_costs_its_little() -> None:
    """Ten pages a second at 5 us are 50 us of CPU a second, a twentieth of a permille of a core.
    Two VMs want all of the one core there is: each loses half of every second to the other, and
    25 us to scanning. Exact."""
    scanning = {"enabled": True, "scan_pages_per_s_vm": 5, "scan_pages_per_s_total": 10}
    host = make_host(sharing=scanning, cpus=1, costs={"scan": 5_000})
    phase = make_phase(memory=16 * MIB, cpu=1000)
    power_on(host, *[make_spec(vm, 16 * MIB, phase) for vm in (1, 2)])
    run(host, 10 * SECOND)
    host.measure()
    run(host, MINUTE)
    assert counter(host, "scanned") == 60 * 10
    for vm in (1, 2):
        lost = lost_ns(host, vm)
        assert (lost["scan"], lost["cpu"]) == (60 * 25_000, 30 * NS)
        assert sum(lost.values()) == lost["scan"] + lost["cpu"]


def test_an_absurd_price_of_scanning_takes_all_time_and_no_more() -> None:
    """More pages than any step scans, an hour each: more than 64 bits hold. Exact."""
    host = make_host(cpus=1, costs={"scan": 3600 * NS})
    power_on(host, make_spec(1, MIB, make_phase(cpu=1000)))
    run(host, 5 * SECOND)
    host.measure()
    host.state.host[0].scanned_last_step = 1 << 40
    run(host, 5 * SECOND)
    lost = lost_ns(host, 1)
    assert lost["scan"] == sum(lost.values()) == int(row_of(host, 1).on_ns) == 5 * NS


@given(st.data(), st.integers(0, 1 << 42), st.integers(1, (1 << 62) - 1))
def test_a_part_of_an_amount_is_exact_where_the_product_fits_no_integer(
    data: st.DataObject, amount: int, whole: int
) -> None:
    part = data.draw(st.integers(0, whole))
    assert tick.part_of(amount, part, whole) == amount * part // whole
