"""Touches that change nothing are skipped: a host that makes every one of them is not different.

Reads of resident private pages and unique-to-unique writes may be thinned away as long as the
distribution of everything observable stays exact (design section 4). Here it is the very outcome
that stays: a slow guest, which asks the memory manager about each touch, draws the same pages, and
afterwards each array of the two hosts is equal, but for the serial numbers of unique contents.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from host_builders import (
    SECOND,
    counter,
    make_host,
    make_image,
    make_phase,
    make_rows,
    make_spec,
    power_on,
    row_of,
    run,
)

from hostsim import guest, invariants, rng, tick, touch, workload
from hostsim.config import Disk
from hostsim.guest_config import ContentMix, ContentTable
from hostsim.host import Host
from hostsim.program import KEEP, LOCALITIES, SWEEP, ZIPF
from hostsim.state import INDEX, UNIQUE, HostState
from hostsim.units import MIB

CONTENT = ContentTable(
    kernel=ContentMix(unique=50),
    cache=ContentMix(image=150, unique=150),
    anon=ContentMix(zero=100, image=200, duplicate=50, unique=300),
)
_WEYL = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1


def touch_all(st: HostState, v: int, n: int, touch_ns: int, writes: int, locality: int) -> int:
    """`workload.touch_window` without thinning, in Python: every touch is made."""
    vm = st.vms[v]
    mix = rng.mix.py_func  # type: ignore[attr-defined]
    key = int(rng.stream(st.host[0].seed, rng.TOUCH, vm.vm, st.host[0].tick))
    active, window, span = int(vm.active), int(vm.window), int(vm.span)
    done = 0
    while done < n and vm.left_ns >= touch_ns:
        word = int(mix(np.uint64((key + done * _WEYL) & _WORD)))
        is_write = int(((word & 0xFFFFFFFF) * 1000 >> 32) < writes)
        if locality == SWEEP:
            offset = (int(vm.sweep) + done) % active
        elif locality == ZIPF:
            second = mix(np.uint64((word + _WEYL) & _WORD))
            offset = active - 1 - int(touch.zipf_rank(np.uint64(second), active))
        else:
            offset = (word >> 32) * active >> 32
        ppn = int(vm.kernel) + (window + offset) % span
        vm.left_ns -= touch_ns
        cost = guest.access(st, v, ppn, is_write)
        if cost >= 0:
            vm.brk = max(vm.brk, ppn + 1)
        going = workload.settle(st, v, cost)
        done += cost >= 0
        if not going:
            break
    vm.sweep = (vm.sweep + done) % active
    return done


def step_unthinned(monkeypatch: pytest.MonkeyPatch) -> Callable[[HostState], None]:
    """The pipeline's step, as Python down to the guests' touches, with `touch_all` in it."""
    monkeypatch.setattr(tick, "run_guests", tick.run_guests.py_func)  # type: ignore[attr-defined]
    for name in ("run", "work"):
        monkeypatch.setattr(workload, name, getattr(workload, name).py_func)
    monkeypatch.setattr(workload, "touch_window", touch_all)
    return tick.step.py_func  # type: ignore[attr-defined, no-any-return]


def observable(host: Host) -> dict[str, Any]:
    """Every array but working space; unique contents without their serial numbers."""
    st = host.state
    vms = st.vms.copy()
    vms["serial"] = 0
    content = np.where(st.content & UNIQUE, st.content & ~np.uint32(INDEX), st.content)
    names = [
        "host",
        "level_ms",
        "lost",
        "page",
        "refs",
        "hints",
        "sampled",
        "stale_page",
        "stale_at",
    ]
    return {name: getattr(st, name).tolist() for name in names} | {
        "vms": vms.tolist(),
        "content": content.tolist(),
    }


def busy_host(locality: str) -> Host:
    """Three guests on a host too small for them: scans, balloons, paging and sampling all run."""
    host = make_host(
        reserve=59 * MIB,
        sharing={"enabled": True, "scan_pages_per_s_vm": 400, "scan_pages_per_s_total": 900},
        balloon={"inflate": MIB // 4},
        allocation={"balance_period": 5 * SECOND},
        sampling={"pages": 20, "period": 7 * SECOND},
        reclaim={"high": 8, "soft": 6, "hard": 4, "low": 2},
        swap=Disk(latency=200_000, iops=400),
    )
    image = make_image(2 * MIB, content=CONTENT)
    options: dict[str, Any] = {"locality": locality, "touch_interval": 700, "writes": 400}
    power_on(
        host,
        make_spec(1, 4 * MIB, make_phase(active=MIB, drift=1000, **options), image=image),
        make_spec(2, 4 * MIB, make_rows((99, KEEP, 2 * MIB), **options), image=image),
        make_spec(
            3, 4 * MIB, make_phase(active=MIB, memory=3 * MIB, **options), image=image,
            balloon="absent",
        ),
    )  # fmt: skip
    return host


@pytest.mark.parametrize("locality", LOCALITIES)
def test_skipped_touches_change_nothing_that_can_be_seen(
    locality: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast, slow = busy_host(locality), busy_host(locality)
    step = step_unthinned(monkeypatch)
    for _ in range(40):
        run(fast, SECOND)
        with np.errstate(over="ignore"):
            step(slow.state)
        assert observable(fast) == observable(slow)
    invariants.check(slow.state)
    for name in ("cow_breaks", "swap_ins", "guest_page_ins", "stale_hints", "zero_fills"):
        assert counter(fast, name) > 10, name
    made = [int(row_of(slow, vm).serial) - int(row_of(fast, vm).serial) for vm in (1, 2, 3)]
    assert sum(made) > 500  # so many writes were thinned away
