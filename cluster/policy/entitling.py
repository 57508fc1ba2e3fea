"""PURE: at each interval, VMs' shares and limits follow what their pools entitle them to."""

from __future__ import annotations

import numpy as np

from cluster.messages import Entitle, Order
from cluster.policy import demand, state
from cluster.policy.decisions import Plan, Sight
from cluster.policy.state import NOWHERE, ON, RUNS, ClusterState
from cluster.pools import ROOT, Wants, entitlements
from hostsim.units import MIB, PAGE_SIZE, HostId, VmId


def plan(now: ClusterState, sight: Sight) -> Plan:
    """Orders to hosts whose VMs' entitlement has changed, in MiB. Pools are divided as often as
    balancing looks, whether it is on or not."""
    if not now.pools.pools or not sight.looks(sight.scenario.balancing.interval):
        return Plan((), now, ())
    is_on = (now.host_of != NOWHERE) & (now.power[now.host_of] <= RUNS)
    load = demand.measure(now, sight)
    wanted = load.demand[demand.MEMORY].astype(np.int64)
    wants = Wants(now.reservation, now.limit, now.shares, wanted)
    overheads = int(now.vms.overhead[is_on].sum())
    total = int(now.hosts.reservable[now.power == ON].sum()) - overheads
    entitled = entitlements(now.pools, wants, is_on, max(total, 0)) // MIB
    is_limited = _under_limits(now)
    orders: list[Order] = []
    for vm in np.flatnonzero(is_on & (entitled != now.entitled)).tolist():
        limit = int(now.limit[vm])
        if is_limited[vm]:
            least = max(int(now.reservation[vm]), PAGE_SIZE)
            limit = min(limit, max(int(entitled[vm]) * MIB, least))
        shares = int(max(entitled[vm], 1)) if now.shares[vm] else 0
        host = HostId(int(now.host_of[vm]))
        orders.append(Entitle(host, VmId(vm), int(entitled[vm]), limit, shares))
    return Plan(tuple(orders), state.obey(now, orders), ())


def next_after(now: ClusterState, sight: Sight) -> int:
    """The next epoch at which pools are divided."""
    if not now.pools.pools:
        return sight.scenario.duration // sight.scenario.epoch
    return sight.next_look(sight.scenario.balancing.interval)


def _under_limits(now: ClusterState) -> list[bool]:
    """Whether a VM's pool, or one above it, has a limit."""
    limited: dict[int, bool] = {ROOT: False}
    for at, pool in enumerate(now.pools.pools):
        limited[at] = limited[pool.parent] or pool.is_limited
    return [limited[at] for at in now.pools.of_vm.tolist()]
