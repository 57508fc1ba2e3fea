"""Time that a guest loses: what does not fit into a step is a debt that the next ones pay."""

from __future__ import annotations

from hostsim import fault
from hostsim.jit import kernel
from hostsim.state import BLOCKED, GUEST_PAGING, N_CAUSES, SWAP_IN, TIER, HostState


@kernel
def lose(st: HostState, v: int, cost_ns: int, cause: int) -> None:
    """The VM loses time now; what does not fit into this step is a debt for the next."""
    vm = st.vms[v]
    now = min(cost_ns, vm.left_ns)
    st.lost[v, cause] += now
    vm.left_ns -= now
    st.debts[v, cause] += cost_ns - now


@kernel
def pay_debts(st: HostState, v: int) -> None:
    """The VM pays for what earlier steps cost it, as far as this one reaches, cause by cause."""
    for cause in range(N_CAUSES):
        debt = st.debts[v, cause]
        st.debts[v, cause] = 0
        lose(st, v, debt, cause)


@kernel
def settle(st: HostState, v: int, cost_ns: int) -> bool:
    """Charge what an access cost, or the rest of the step when it stalled. False: stop here."""
    vm = st.vms[v]
    if cost_ns == 0:
        return vm.left_ns > 0
    if cost_ns > 0:
        lose(st, v, cost_ns, vm.cause)
        return vm.left_ns > 0
    st.host[0].stalled_touches += 1
    cause = BLOCKED
    if cost_ns == fault.NO_IO:
        cause = SWAP_IN
    elif cost_ns == fault.NO_TIER_IO:
        cause = TIER
    elif cost_ns == fault.NO_GUEST_MEMORY or cost_ns == fault.NO_GUEST_IO:
        cause = GUEST_PAGING
    lose(st, v, vm.left_ns, cause)
    return False
