"""Ballooning [P 3.2] in a running host: when drivers poll, how fast balloons move, how far they
may go, and when there is no balloon at all. Page by page: test_balloon_pages.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from host_builders import (
    FAST_DISK,
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

from hostsim import balloon, invariants
from hostsim.host import Host
from hostsim.units import MIB, PAGE_SIZE, VmId

N_PAGES = MIB // PAGE_SIZE
CONFIGURED = {"claim": "configured", "deadband_sigmas": 0}
"""With these claims a balloon's target is the VM's size less its target: a limit sets it."""


def limited_host(size: int, limit: int, *, tick_ms: int = SECOND, **options: Any) -> Host:
    """One booted VM, whose balloon is wanted at `size - limit` bytes and has not moved yet."""
    host = make_host(tick_ms=tick_ms, allocation=CONFIGURED, **options)
    power_on(host, make_spec(1, size))
    run_until_booted(host)
    host.set_vm(VmId(1), limit=limit)
    return host


def ballooned(host: Host, vm: int = 1) -> int:
    return int(row_of(host, vm).ballooned)


# When and how fast


@pytest.mark.parametrize("tick_ms", [250, 1000, 4000])
def test_a_driver_polls_once_a_second(tick_ms: int) -> None:
    """Between polls a balloon stands still; a long step holds as many polls as seconds [P 3.2]."""
    host = limited_host(32 * MIB, 16 * MIB, tick_ms=tick_ms, balloon={"inflate": MIB})
    before, moved_at = ballooned(host), []
    for _ in range(12 * SECOND // tick_ms):
        run(host, tick_ms)
        if ballooned(host) != before:
            moved_at.append(int(host.state.host[0].now_ms))
            assert ballooned(host) - before == 256 * max(tick_ms // SECOND, 1)
        before = ballooned(host)
    period = max(tick_ms, SECOND)
    assert moved_at and all(now % SECOND == 0 for now in moved_at)
    assert set(np.diff(moved_at).tolist()) == {period}


@pytest.mark.parametrize("bytes_per_s", [MIB, 10_000, 4096, 1000])
def test_inflation_is_bounded_exactly(bytes_per_s: int) -> None:
    """The bound, a whole number of thousandths of a page a second, holds over minutes to a page:
    what a poll may not take, carries."""
    host = limited_host(48 * MIB, MIB, balloon={"inflate": bytes_per_s, "maximum": 1000})
    seconds = 40 if bytes_per_s == MIB else 600
    rate = bytes_per_s * 1000 // PAGE_SIZE / 1000
    for second in range(1, seconds + 1):
        host.advance(SECOND)
        assert abs(ballooned(host) - second * rate) <= 1
    invariants.check(host.state)
    assert counter(host, "inflated") == ballooned(host) > 0


@pytest.mark.parametrize("bytes_per_s", [MIB, 10_000])
def test_deflation_is_bounded_exactly(bytes_per_s: int) -> None:
    rates = {"inflate": 64 * MIB, "deflate": bytes_per_s, "maximum": 1000}
    host = limited_host(48 * MIB, 8 * MIB, balloon=rates)
    run(host, 2 * SECOND)
    full = ballooned(host)
    assert full == 40 * N_PAGES
    host.set_vm(VmId(1), limit=48 * MIB)
    rate = bytes_per_s * 1000 // PAGE_SIZE / 1000
    for second in range(1, 31):
        host.advance(SECOND)
        assert abs(full - ballooned(host) - second * rate) <= 1
    invariants.check(host.state)
    assert counter(host, "deflated") == full - ballooned(host) > 0


def test_a_balloon_stops_at_its_target() -> None:
    host = limited_host(32 * MIB, 20 * MIB, balloon={"inflate": 5 * MIB})
    seen = []
    for _ in range(4):
        run(host, SECOND)
        seen.append(ballooned(host) // N_PAGES)
    assert seen == [5, 10, 12, 12]


@pytest.mark.parametrize(("profile", "permille"), [("osdi02", 500), ("vsphere", 650)])
def test_a_balloon_never_exceeds_the_profiles_part_of_the_vm(profile: str, permille: int) -> None:
    """Half of the VM's size in ESX 2 [ADM2 p353], 65 % from ESX 3 on."""
    options = {"balloon": {"inflate": 64 * MIB}} if profile == "osdi02" else {}
    host = limited_host(32 * MIB, MIB, profile=profile, reserve=0, **options)
    run(host, 60 * SECOND)
    assert ballooned(host) == 8192 * permille // 1000


def test_a_balloon_never_takes_the_reservation() -> None:
    """Three VMs of 32 MiB on 64, the reservation 24: even an idle one keeps it."""
    host = make_host(
        96 * MIB, reserve=8 * MIB, allocation=CONFIGURED, balloon={"inflate": 64 * MIB}
    )
    busy = make_phase(active=32 * MIB)
    power_on(
        host,
        make_spec(1, 40 * MIB, busy, reservation=24 * MIB),
        make_spec(2, 40 * MIB, reservation=24 * MIB),
        make_spec(3, 40 * MIB, busy, reservation=24 * MIB),
    )
    largest = 0
    for _ in range(120):
        run(host, SECOND)
        for vm in (1, 2, 3):
            assert ballooned(host, vm) <= 16 * N_PAGES
        largest = max(largest, ballooned(host, 2))
    assert largest == 16 * N_PAGES


# A balloon that is lost, or was never there


def test_a_balloon_starts_anew_after_a_guest_reset() -> None:
    """Nothing moves while the guest boots; at its first poll the driver pops what is left."""
    host = limited_host(32 * MIB, 20 * MIB, balloon={"inflate": MIB})
    run(host, 20 * SECOND)
    assert ballooned(host) == 12 * N_PAGES
    host.reset(VmId(1))
    waited_ms = run_until_booted(host)
    assert waited_ms >= SECOND
    left = ballooned(host)
    assert 11 * N_PAGES <= left <= 12 * N_PAGES
    popped = counter(host, "pops")
    assert left + popped == 12 * N_PAGES
    run(host, SECOND)
    assert counter(host, "pops") == 12 * N_PAGES
    assert ballooned(host) == N_PAGES  # what one poll may take


@pytest.mark.parametrize("driver", ["absent", "disabled"])
def test_the_host_swaps_where_there_is_no_driver(driver: str) -> None:
    host = make_host(balloon={"inflate": 64 * MIB})
    use_all = make_phase(active=40 * MIB, memory=40 * MIB, locality="sweep")
    power_on(host, *(make_spec(vm, 40 * MIB, use_all, balloon=driver) for vm in (1, 2)))
    run(host, 60 * SECOND)
    assert (ballooned(host, 1), ballooned(host, 2)) == (0, 0)
    assert counter(host, "swap_outs") > 10 * N_PAGES
    assert counter(host, "guest_page_outs") == 0


def test_with_drivers_guests_page_and_the_host_need_not() -> None:
    host = make_host(balloon={"inflate": 64 * MIB})
    use_all = make_phase(memory=40 * MIB, growth=2 * MIB)
    power_on(host, *(make_spec(vm, 40 * MIB, use_all) for vm in (1, 2)))
    run(host, 120 * SECOND)
    total = ballooned(host, 1) + ballooned(host, 2)
    assert 16 * N_PAGES < total < 24 * N_PAGES
    assert counter(host, "guest_page_outs") > 16 * N_PAGES
    assert counter(host, "swap_outs") < N_PAGES


def test_a_booting_guest_has_no_driver_yet() -> None:
    """Two guests that boot for a minute into more than there is: the host swaps, balloons wait."""
    host = make_host(allocation=CONFIGURED, balloon={"inflate": 64 * MIB})
    image = make_image(40 * MIB, boot=60 * SECOND, disk=FAST_DISK)
    power_on(host, *(make_spec(vm, 40 * MIB, image=image) for vm in (1, 2)))
    for _ in range(59):
        run(host, SECOND)
        assert (ballooned(host, 1), ballooned(host, 2)) == (0, 0)
        assert not balloon.can_balloon(host.state, 0)
    assert counter(host, "swap_outs") > 10 * N_PAGES
    run_until_booted(host)
    run(host, 2 * SECOND)
    assert ballooned(host, 1) + ballooned(host, 2) > 0
