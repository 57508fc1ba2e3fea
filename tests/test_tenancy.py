"""VMs that are let in together are as if each had come alone; if one may not, nothing changes."""

from __future__ import annotations

import numpy as np
import pytest
from crowded_hosts import SECOND, crowded_host, crowded_spec
from host_builders import arrays_of, make_host, make_image, make_phase, make_spec, run
from hypothesis import given, settings
from hypothesis import strategies as st

from hostsim import invariants
from hostsim.guest_config import ContentMix, ContentTable
from hostsim.snapshot import DERIVED
from hostsim.spec import VmSpec
from hostsim.state import ARRAYS
from hostsim.units import MIB, VmId

SHARED = ContentTable(anon=ContentMix(zero=200, image=300, duplicate=200, unique=300))
IMAGES = (make_image(MIB, content=SHARED), make_image(2 * MIB), make_image(MIB, copies=3.0))


def spec_of(vm: int, kind: int, size: int) -> VmSpec:
    phase = make_phase(active=MIB // 2)
    image = IMAGES[kind]
    return make_spec(vm, size * MIB, phase, image=image, image_range=kind + 1)


@settings(max_examples=25)
@given(
    kinds=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4)), min_size=1, max_size=20),
    left=st.lists(st.integers(0, 5), max_size=3, unique=True),
    salting=st.sampled_from(["none", "vm"]),
)
def test_together_is_one_after_the_other(
    kinds: list[tuple[int, int]], left: list[int], salting: str
) -> None:
    """On a host where some VMs run and others have left holes; the rows double on the way."""
    arrays = []
    newcomers = [spec_of(10 + at, *kind) for at, kind in enumerate(kinds)]
    for together in (True, False):
        host = make_host(128 * MIB, sharing={"enabled": True, "salting": salting})
        host.power_on(*(spec_of(vm, vm % 3, 2) for vm in range(6)))
        run(host, 3 * SECOND)
        for vm in left:
            host.power_off(VmId(vm))
        if together:
            host.power_on(*newcomers)
        else:
            for spec in newcomers:
                host.power_on(spec)
        invariants.check(host.state)
        at_once = arrays_of(host.state)
        run(host, 2 * SECOND)
        arrays.append((at_once, arrays_of(host.state), host.ranges, host.specs))
    assert arrays[0] == arrays[1]


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (make_spec(8, 64 * MIB, reservation=64 * MIB), "memory-reservation"),
        (crowded_spec(7), "VM 7 is already on"),
        (crowded_spec(1), "VM 1 is already on"),
    ],
)
def test_one_that_is_refused_keeps_all_out(second: VmSpec, reason: str) -> None:
    host = crowded_host(frames=200, vms=(1, 2))
    before, ranges, specs = arrays_of(host.state), dict(host.ranges), dict(host.specs)
    with pytest.raises(ValueError, match=reason):
        host.power_on(crowded_spec(7), second)
    assert (arrays_of(host.state), host.ranges, host.specs) == (before, ranges, specs)


def test_hosts_that_run_in_turns_are_as_if_each_ran_alone() -> None:
    """They share working space, which holds nothing between two runs."""
    in_turns = [make_host(128 * MIB, sharing={"enabled": True}) for _ in range(2)]
    alone = [make_host(128 * MIB, sharing={"enabled": True}) for _ in range(2)]
    for hosts in (in_turns, alone):
        for kind, host in enumerate(hosts):
            host.power_on(*(spec_of(vm, kind, 4) for vm in range(3)))
    assert in_turns[0].state.loud is in_turns[1].state.loud
    for _ in range(5):
        for host in in_turns:
            run(host, 2 * SECOND)
    for host in alone:
        run(host, 10 * SECOND)
    kept = set(ARRAYS) - set(DERIVED)
    for one, other in zip(in_turns, alone, strict=True):
        assert all(np.array_equal(getattr(one.state, k), getattr(other.state, k)) for k in kept)
