"""A host's idle tax changes while it runs, as in the paper's figure 7: targets follow at once."""

from __future__ import annotations

import naive_scenes as scenes
import pytest
from host_builders import (
    MINUTE,
    SECOND,
    alloc_slots,
    arrays_of,
    counter,
    in_slots,
    make_host,
    make_phase,
    make_spec,
    power_on,
    row_index,
    row_of,
    run,
)
from naive_pair import Pair, vm_spec

from hostsim import allocate, sample, snapshot, tick
from hostsim.host import Host
from hostsim.units import MIB


def untaxed() -> Host:
    """An idle VM and a busy one, of 48 MiB each and equal shares, on 64 MiB without a tax.

    Of `goal`, 6 % of 64 MiB and a page, and what is left the division is by `configured` claims.
    Guests grow slower than balloons do, so that the host need not swap.
    """
    allocation = {"idle_tax": 0, "claim": "configured", "deadband_sigmas": 0}
    options = {"sampling": {"period": 5 * SECOND}, "balloon": {"maximum": 900}}
    host = make_host(64 * MIB, allocation=allocation, **options)
    for vm, active in ((1, 0), (2, 28 * MIB)):
        power_on(
            host, make_spec(vm, 48 * MIB, make_phase(memory=44 * MIB, growth=MIB, active=active))
        )
    run(host, 3 * MINUTE)
    return host


def targets(host: Host) -> list[int]:
    return [int(row_of(host, vm).target) for vm in host.vm_ids()]


def active(host: Host) -> list[float]:
    """Slots of each VM that count as active."""
    fractions = [sample.active_fraction(host.state, row_index(host, vm)) for vm in host.vm_ids()]
    return [f * alloc_slots(host, vm) for f, vm in zip(fractions, host.vm_ids(), strict=True)]


def test_targets_follow_a_new_tax_at_the_next_step() -> None:
    """Two equal VMs without a tax have M / 2 each. With one, both having idle memory, they pay an
    equal price where k P - (k - 1) A is equal for both [P 5.2]: P1 = M / 2 - (k - 1) / 2k (A2 - A1)
    for A as estimated then. Within a slot of rounding. M: 64 MiB less the goal, as nothing is
    shared and nothing has overheads."""
    host = untaxed()
    m = in_slots(64 * MIB) - counter(host, "goal")
    assert tick.machine_to_divide(host.state) == m
    assert targets(host) == [m - m // 2, m // 2]
    for tax, k in ((750, 4), (500, 2)):
        host.set_host(idle_tax=tax)
        assert host.config.allocation.idle_tax == tax
        assert counter(host, "rebalance") == 1
        idle, busy = active(host)
        assert idle + 1000 < busy < m / 2, "there is something to move"
        run(host, SECOND)
        moved = (k - 1) / (2 * k) * (busy - idle)
        assert targets(host) == pytest.approx([m / 2 - moved, m / 2 + moved], abs=1)
    host.set_host(idle_tax=0)
    run(host, SECOND)
    assert targets(host) == [m - m // 2, m // 2]


def test_balloons_follow_the_new_targets() -> None:
    """At 4 MiB/s, what the tax moves (3/8 of 28 MiB that are active) is there after a minute."""
    host = untaxed()
    size, before = in_slots(48 * MIB), targets(host)
    for tax in (0, 750):
        host.set_host(idle_tax=tax)
        run(host, MINUTE)
        ballooned = [int(row_of(host, vm).ballooned) for vm in host.vm_ids()]
        assert ballooned == pytest.approx([size - target for target in targets(host)], abs=1)
    moved = before[0] - alloc_slots(host, 1)
    assert moved == pytest.approx(3 / 8 * in_slots(28 * MIB), rel=0.05)


@pytest.mark.parametrize(
    ("tax", "why"), [(991, "less than or equal to 990"), (-1, "greater than or equal to 0")]
)
def test_a_tax_that_is_not_allowed_changes_nothing(tax: int, why: str) -> None:
    host = make_host()
    run(host, SECOND)
    before, config = arrays_of(host.state), host.config
    with pytest.raises(ValueError, match=why):
        host.set_host(idle_tax=tax)
    assert arrays_of(host.state) == before and host.config == config


def test_hosts_that_had_one_configuration_do_not_share_the_change() -> None:
    one = make_host()
    other = Host(one.host, one.config, one.seed, one.sample, one.tick_ms)
    one.set_host(idle_tax=0)
    assert (one.config.allocation.idle_tax, other.config.allocation.idle_tax) == (0, 750)
    assert counter(other, "tax_k") == 4


def test_a_snapshot_keeps_the_new_tax() -> None:
    host = untaxed()
    host.set_host(idle_tax=333)
    loaded = snapshot.load(snapshot.save(host))
    assert loaded.config == host.config
    assert loaded.state.host[0].tax_k == allocate.tax_factor(0.333)
    for one in (host, loaded):
        run(one, 20 * SECOND)
    assert snapshot.digest(loaded) == snapshot.digest(host)


def test_a_snapshot_whose_tax_is_not_the_configured_one_is_refused() -> None:
    host = make_host()
    host.set_host(idle_tax=0)
    host.state.host[0].tax_k = 4.0
    with pytest.raises(snapshot.PackingError, match=r"tax_k is 4\.0, the configuration says 1.0"):
        snapshot.load(snapshot.save(host))


@pytest.mark.parametrize("claim", ["configured", "touched"])
def test_the_literal_twin_agrees_before_and_after(claim: str) -> None:
    """An idle and a busy VM on a host for two thirds of them; every step is compared."""
    k = 16
    allocation = {"claim": claim, "idle_tax": 0, "deadband_sigmas": 1}
    pair = Pair(scenes.host(k, 160, allocation=allocation), 5, k)
    image = scenes.image(k, 60)
    for vm, in_use in enumerate((4, 90)):
        does = scenes.phases(k, {"active": in_use, "memory": 110})
        assert pair.power_on(vm_spec(vm, scenes.guest(k, 120), image, does))
    seen = []
    for tax in (0, 750, 990, 0):
        pair.set_host(tax)
        pair.check()
        pair.tick(30)
        seen.append(pair.twin.vms[0].target)
    assert seen[1] < seen[0] and seen[2] < seen[3]
