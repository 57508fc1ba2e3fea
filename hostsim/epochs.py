"""Hosts run: steps, one after the other, and a measurement at the end of each epoch.

All in one compiled call, however many hosts and epochs, so that nothing of a run is interpreted per
step, nor per host. One host runs to the end before the next one: its arrays stay in the cache.
"""

from __future__ import annotations

from typing import Any

from hostsim.jit import kernel
from hostsim.measure import measure
from hostsim.state import Array, count_vms, state_at
from hostsim.tick import step


@kernel
def run(
    hosts: Any,
    end_ms: int,
    epoch_ms: int,
    first_vm: Array,
    host_rows: Array,
    vm_rows: Array,
    changes: Array,
) -> int:
    """Run steps until `end_ms`, or until `changes` is full: how many level changes there were.

    A host that was not at its end yet goes on with the next call.

    hosts: handles of their states. epoch_ms: measure whenever the time is a multiple of that, 0 =
    never; the tables then end with the rows of `end_ms`. host_rows: HOST_ROW, out, by epoch and
    host. vm_rows: VM_ROW, out, by epoch and host; in an epoch those of host i are [first_vm[i],
    first_vm[i + 1]), first_vm (n_hosts + 1,) int64. changes: (n, 5) int64, out: place of the host,
    start of the step in ms, level before, level after, free slots that decided.
    """
    n_hosts = first_vm.size - 1
    n_changes = 0
    for i in range(n_hosts):
        st = state_at(hosts[i])
        while st.host[0].now_ms < end_ms:
            if n_changes == changes.shape[0]:
                return n_changes
            before = st.host[0].level
            step(st)
            now_ms = st.host[0].now_ms
            if st.host[0].level != before:
                changes[n_changes, 0] = i
                changes[n_changes, 1] = now_ms - st.host[0].dt_ms
                changes[n_changes, 2] = before
                changes[n_changes, 3] = st.host[0].level
                changes[n_changes, 4] = st.host[0].level_free
                n_changes += 1
            if epoch_ms > 0 and now_ms % epoch_ms == 0:
                left = (end_ms - now_ms) // epoch_ms + 1
                row = host_rows[host_rows.size - left * n_hosts + i]
                first = vm_rows.size - left * first_vm[n_hosts] + first_vm[i]
                measure(st, row, vm_rows, first)
                row.epoch = now_ms // epoch_ms - 1
                for vm in range(count_vms(st)):
                    vm_rows[first + vm].epoch = row.epoch
    return n_changes
