"""Large pages are broken so that their parts can be shared, before anything else is done."""

from __future__ import annotations

import numpy as np

from hostsim import large, rng, share
from hostsim.jit import kernel
from hostsim.ranks import Kind, place_of
from hostsim.state import HostState, count_vms, slot_unit

_ONE = np.uint8(1)
BACKED: Kind = (np.uint8(0xFF), _ONE, _ONE, _ONE, _ONE)
"""Regions, by their bits, that large pages back."""


@kernel
def break_large(st: HostState, v: int, ppn: int) -> None:
    """Break the large page that a page is part of, and try all its parts for sharing."""
    large.split(st, v, ppn)
    size = st.host[0].large_slots
    first = ppn - ppn % size
    for part in range(first, first + size):
        share.scan_page(st, v, part)


@kernel
def break_large_pages(st: HostState, first: int) -> None:
    """Break random large pages of every sharing VM, in id order from position `first`.

    As many as have the parts that the scanner comes to in CLEAR, see `share.scan`, beside those.
    """
    host, n = st.host[0], count_vms(st)
    unit = slot_unit(st) * host.large_slots
    host.large_carry += host.scan_rate_total * host.dt_ms
    left = host.large_carry // unit
    host.large_carry %= unit
    for i in range(n):
        v = st.order[(first + i) % n]
        vm = st.vms[v]
        if vm.sharing == 0:
            continue
        vm.large_carry += host.scan_rate_vm * host.dt_ms
        due = min(min(vm.large_carry // unit, left), vm.large)
        vm.large_carry %= unit
        left -= due
        host.scanned_last_step += due * host.large_slots
        key = rng.stream(host.seed, rng.BREAK, vm.vm, host.tick)
        for j in range(due):
            regions = st.large[vm.large_base : vm.large_base + vm.regions]
            region = place_of(regions, BACKED, rng.below(key, j, vm.large))
            break_large(st, v, region * host.large_slots)
