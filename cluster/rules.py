"""PURE: rules of which VMs may be on which hosts: together, apart, on some hosts only.

A VM on its way counts where it goes. Placement and balancing keep the rules; what breaks one all
the same, as when a VM comes before its partners, is mended by the next balancing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from hostsim.units import HostId, VmId

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

TOGETHER, APART, HOSTS = "together", "apart", "hosts"
"""Kinds of rules."""


@dataclass(frozen=True, slots=True)
class Rule:
    """vms: those that the rule is about, ascending. hosts: where they may be, of kind HOSTS."""

    kind: str
    vms: tuple[VmId, ...]
    hosts: tuple[HostId, ...] = ()


@dataclass(frozen=True, slots=True)
class Rules:
    """All rules of a scenario; of_vm: those of each VM that has any."""

    of_vm: Mapping[VmId, tuple[Rule, ...]] = field(default_factory=dict)

    def allowed(self, where: Ints, vm: VmId, n_hosts: int) -> Any:
        """(n_hosts,) bool: hosts where `vm` breaks no rule. where: (n_vms,) host of each other VM,
        negative where it has none. Partners that are not together yet: with most of them, ties to
        the lower id."""
        allowed: Bools = np.ones(n_hosts, np.bool_)
        for rule in self.of_vm.get(vm, ()):
            others = [int(where[one]) for one in rule.vms if one != vm and where[one] >= 0]
            if rule.kind == APART:
                allowed[others] = False
            elif rule.kind == HOSTS:
                allowed &= np.isin(np.arange(n_hosts), rule.hosts)
            elif others:
                counts = Counter(others)
                most = min(counts, key=lambda host: (-counts[host], host))
                allowed &= np.arange(n_hosts) == most
        return allowed


def of(rules: tuple[Rule, ...]) -> Rules:
    """Rules by VM, each VM's in their order."""
    found: dict[VmId, tuple[Rule, ...]] = {}
    for rule in rules:
        for vm in rule.vms:
            found[vm] = (*found.get(vm, ()), rule)
    return Rules(found)
