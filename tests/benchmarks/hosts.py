"""The hosts that kernels are measured on: booted guests that share an image, partly scanned.

Every page is in memory or in swap, and all states of hints and shared frames occur. `Frozen` keeps
the arrays as they were, so that every implementation starts from the same ones.
"""

from __future__ import annotations

from host_builders import make_host, make_image, make_phase, make_spec, power_on, run_until_booted

from hostsim import guest, invariants, rng, share, swap
from hostsim.ahead import FAR, NEAR, fetch_frame, fetch_page
from hostsim.fault import touch
from hostsim.guest_config import ContentMix, ContentTable
from hostsim.host import Host
from hostsim.jit import small
from hostsim.snapshot import WINDOW_SPACE
from hostsim.state import ARRAYS, HostState, count_vms
from hostsim.units import PAGE_SIZE

N_VMS = 16
SCANNED_PERMILLE = 500
"""Random pages scanned before the start, of each VM's pages."""
WRITTEN_PERMILLE = 100
"""Random pages written after that."""
NO_LIMIT = 1 << 50
CONTENT = ContentTable(
    kernel=ContentMix(image=20, unique=40),
    cache=ContentMix(image=250),
    anon=ContentMix(zero=80, image=200, duplicate=90, unique=320),
)
"""About what scenarios/images.yaml has of Debian guests."""


@small
def touch_many(st: HostState, v: int, n: int, is_write: int) -> int:
    """`n` touches of random pages, all reads or all writes. Returns what they cost in all, in ns.

    The loop is the benchmark's own, as is that in C; what it measures is `fault.touch`."""
    vm = st.vms[v]
    key = rng.stream(st.host[0].seed, rng.TOUCH, vm.vm, st.host[0].tick)
    cost = 0
    for draw in range(FAR):
        fetch_page(st, vm.base_slot + rng.below(key, draw, vm.size_slots))
    for draw in range(n):
        fetch_page(st, vm.base_slot + rng.below(key, draw + FAR, vm.size_slots))
        if is_write == 1:
            fetch_frame(st, vm.base_slot + rng.below(key, draw + NEAR, vm.size_slots))
        word = guest.fresh_word(st, v) if is_write == 1 else 0
        cost += touch(st, v, rng.below(key, draw, vm.size_slots), is_write, word)
    return cost


def booted(n_slots: int) -> Host:
    """A host of N_VMS booted guests with `n_slots` slots in all, partly scanned and written."""
    size = n_slots // N_VMS * PAGE_SIZE
    sharing = {"enabled": False}  # only where a benchmark calls it
    host = make_host(2 * n_slots * PAGE_SIZE, tick_ms=1000, sharing=sharing)
    image = make_image(size, content=CONTENT)
    specs = [make_spec(vm, size, make_phase(), image=image) for vm in range(N_VMS)]
    power_on(host, *specs)
    run_until_booted(host)
    st = host.state
    st.host[0].sharing = 1
    st.vms["sharing"][: count_vms(st)] = 1
    st.host[0].swap_io_left = NO_LIMIT
    st.host[0].tick += 1
    for v in rows(st):
        share.scan_vm(st, v, int(st.vms[v].size_slots) * SCANNED_PERMILLE // 1000)
    for v in rows(st):
        touch_many(st, v, int(st.vms[v].size_slots) * WRITTEN_PERMILLE // 1000, 1)
    st.host[0].tick += 1
    invariants.check(st)
    return host


def page_out_half(st: HostState) -> None:
    """Half of each VM's pages go to swap."""
    for v in rows(st):
        swap.page_out_vm(st, v, int(st.vms[v].size_slots) // 2, NO_LIMIT)
    st.host[0].tick += 1
    invariants.check(st)


def rows(st: HostState) -> list[int]:
    """Rows of the VMs that are on, by id."""
    return [int(v) for v in st.order[: count_vms(st)]]


class Frozen:
    """A host's arrays as they are now, to go back to."""

    def __init__(self, st: HostState) -> None:
        self._kept = {name: getattr(st, name).copy() for name in ARRAYS}

    def restore(self, st: HostState) -> None:
        """Put the values back; the arrays stay where they are."""
        for name, kept in self._kept.items():
            getattr(st, name)[...] = kept

    def first_difference(self, st: HostState) -> str | None:
        """Name of an array that is not as it was then, byte for byte; working space aside."""
        for name, kept in self._kept.items():
            if name not in WINDOW_SPACE and kept.tobytes() != getattr(st, name).tobytes():
                return name
        return None
