"""A host runs: steps, one after the other, and a measurement at the end of each epoch.

All in one compiled call, however many epochs, so that nothing of a run is interpreted per step.
"""

from __future__ import annotations

from hostsim.jit import kernel
from hostsim.measure import measure
from hostsim.state import Array, HostState, count_vms
from hostsim.tick import step


@kernel
def run(
    st: HostState,
    end_ms: int,
    changes: Array,
    epoch_ms: int,
    zeros: Array,
    rows: Array,
    at: int,
    n_hosts: int,
    vm_rows: Array,
    first: int,
    n_vms: int,
) -> int:
    """Run steps until `end_ms`, or until `changes` is full: how many level changes there were.

    changes: (n, 4) int64, out: start of the step in ms, level before, level after, free slots that
    decided. epoch_ms: measure whenever it is a multiple of that, 0 = never; see `measure`.
    rows: HOST_ROW, out; the first epoch's row is rows[at], the next one's n_hosts later.
    vm_rows: VM_ROW, out; those of the first epoch begin at `first`, the next one's n_vms later.
    """
    n_changes = 0
    while st.host[0].now_ms < end_ms and n_changes < changes.shape[0]:
        before = st.host[0].level
        step(st)
        now_ms = st.host[0].now_ms
        if st.host[0].level != before:
            changes[n_changes, 0] = now_ms - st.host[0].dt_ms
            changes[n_changes, 1] = before
            changes[n_changes, 2] = st.host[0].level
            changes[n_changes, 3] = st.host[0].level_free
            n_changes += 1
        if epoch_ms > 0 and now_ms % epoch_ms == 0:
            measure(st, zeros, rows[at], vm_rows, first)
            rows[at].epoch = now_ms // epoch_ms - 1
            for i in range(count_vms(st)):
                vm_rows[first + i].epoch = rows[at].epoch
            at += n_hosts
            first += n_vms
    return n_changes
