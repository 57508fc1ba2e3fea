"""The literal twin's accounts of time that a guest loses, by cause."""

from __future__ import annotations

from naive_machine import NoGuestIo, NoGuestMemory, NoIo, NoTierIo, Stall
from naive_state import Esx, Vm

CAUSES = (
    "swap_in",
    "guest_paging",
    "cow",
    "scan",
    "blocked",
    "migration",
    "cpu",
    "decompress",
    "tier",
)
"""Why time is lost, in the order in which debts are paid."""


class StepOver(Exception):  # noqa: N818 - an end, not an error
    """No time is left in this step."""


def lose(vm: Vm, cost_ns: int, cause: str) -> None:
    now = min(cost_ns, vm.left_ns)
    vm.lost[cause] += now
    vm.left_ns -= now
    vm.debts[cause] += cost_ns - now


def charge(vm: Vm, cost_ns: int) -> None:
    """The touch is done. The step ends when it took the rest of it."""
    if cost_ns > 0:
        lose(vm, cost_ns, vm.cause)
    if vm.left_ns == 0:
        raise StepOver


def stall(esx: Esx, vm: Vm, why: Stall) -> None:
    """The touch is not done: the guest waits for the rest of the step."""
    esx.events["stalled_touches"] += 1
    cause = "blocked"
    if isinstance(why, NoIo):
        cause = "swap_in"
    elif isinstance(why, NoTierIo):
        cause = "tier"
    elif isinstance(why, (NoGuestMemory, NoGuestIo)):
        cause = "guest_paging"
    lose(vm, vm.left_ns, cause)
    raise StepOver from why
