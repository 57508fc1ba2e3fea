"""hostsim's kernels against C with software prefetch and against vectorised NumPy.

All three work on the very same arrays, and leave equal ones: hostsim and C byte for byte, NumPy
where the order of pages does not matter (`numpy_kernels` says where it does). Goals: at most 1.1
times the time of C, and a tenth of NumPy's.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from c_kernels import COMMAND, CKernels, compiler
from hosts import Frozen, booted, page_out_half, rows, touch_many
from measuring import Tables, in_turns, ratio
from numpy_kernels import NumpyKernels

from hostsim import sample, share, swap, touch
from hostsim.program import UNIFORM, ZIPF
from hostsim.state import HostState

SIZES = {"1 GiB": 1 << 18, "64 GiB": 1 << 24}
"""Slots: the first are in a core's cache (64 GiB at sample 64), the others far out of it."""
TURNS = {"1 GiB": 15, "64 GiB": 5}
STEP_NS = 1_000_000_000
WRITES_PERMILLE = 300
NO_GOAL = 1 << 50

TABLE = "Kernels: CPU time, median of turns"
EXACT = ("page", "content", "indexed", "sampled")
"""Arrays that NumPy leaves equal, where order does not matter."""
COUNTERS = ("free", "distinct", "hint_frames", "scanned", "shares_made", "stale_hints")
COUNTERS += ("cow_breaks", "cow_reuses", "swap_ins", "minor_faults")

pytestmark = pytest.mark.benchmark
Kernel = Callable[[HostState, int], object]


@dataclass(frozen=True)
class Case:
    """One kernel, three ways; each is called for every VM with the VM's size in slots.

    unit: what a time is told for. prepare: changes the start. part: of a VM's slots, one in so many
    is a unit.
    """

    unit: str
    hostsim: Callable[[HostState, int, int], object]
    c: Callable[[CKernels, HostState, int, int], object]
    numpy: Callable[[NumpyKernels, HostState, int, int], object]
    same: Callable[[HostState], dict[str, object]]
    """What NumPy leaves equal."""
    prepare: Callable[[HostState], None] = lambda st: None
    part: int = 2


def all_pages(st: HostState) -> dict[str, object]:
    """Pages, contents and counters. Which hints are stale follows from them."""
    found: dict[str, object] = {name: getattr(st, name).tobytes() for name in EXACT}
    found |= {name: int(st.host[0][name]) for name in COUNTERS}
    found |= {f"vms.{name}": st.vms[name].tolist() for name in ("resident", "shared", "swapped")}
    found |= {f"vms.{name}": st.vms[name].tolist() for name in ("serial", "slow", "fast")}
    return found


def frames_only(st: HostState) -> dict[str, object]:
    """Free frames, and victims: each was swapped or shared."""
    host = st.host[0]
    return {"free": int(host.free), "victims": int(host.swap_outs + host.shared_before_swap)}


def nothing(st: HostState) -> dict[str, object]:
    """No array: only what the kernel returns is compared."""
    return {}


def open_windows(st: HostState) -> None:
    """Half of each VM is active, from a quarter on, and time is left for a touch of every page."""
    st.host[0].cow_ns = 0  # or touches would be lost to what copies cost
    for v in rows(st):
        vm = st.vms[v]
        vm.span = vm.brk - vm.kernel
        vm.window, vm.active = vm.span // 4, vm.span // 2
        vm.left_ns = STEP_NS


def touches(st: HostState, v: int) -> tuple[int, int]:
    """How many touches of its window a VM makes, and the time between two."""
    active = int(st.vms[v].active)
    return active, STEP_NS // active


def touch_step(st: HostState, v: int, locality: int) -> int:
    n, touch_ns = touches(st, v)
    return touch.touch_window(st, v, n, touch_ns, WRITES_PERMILLE, locality, n)


def c_touch_step(c: CKernels, st: HostState, v: int, locality: int) -> int:
    n, touch_ns = touches(st, v)
    return c.touch_window(st, v, n, touch_ns, WRITES_PERMILLE, locality)


def end_periods(st: HostState) -> None:
    """Every VM is due a new sample, and has one."""
    for _ in range(2):
        st.vms["clock_ns"] += int(st.host[0].sample_ms) * 1_000_000
        sample.run(st)
    st.vms["clock_ns"] += int(st.host[0].sample_ms) * 1_000_000


def on_first_row(st: HostState, v: int, run: Callable[[HostState], object]) -> object:
    """For kernels that look after all VMs themselves."""
    return run(st) if v == st.order[0] else None


CASES = {
    "scan": Case(
        "page scanned",
        lambda st, v, size: share.scan_vm(st, v, size // 2),
        lambda c, st, v, size: c.scan_vm(st, v, size // 2),
        lambda numpy, st, v, size: numpy.scan_vm(st, v, size // 2),
        all_pages,
    ),
    "write, copy on write": Case(
        "write",
        lambda st, v, size: touch_many(st, v, size // 2, 1),
        lambda c, st, v, size: c.touch_many(st, v, size // 2, 1),
        lambda numpy, st, v, size: numpy.touch_many(st, v, size // 2, 1),
        all_pages,
        open_windows,
    ),
    "touch, uniform": Case(
        "touch",
        lambda st, v, size: touch_step(st, v, UNIFORM),
        lambda c, st, v, size: c_touch_step(c, st, v, UNIFORM),
        lambda numpy, st, v, size: numpy.touch_uniform(st, v, touches(st, v)[0], WRITES_PERMILLE),
        nothing,
        open_windows,
    ),
    "touch, by rank": Case(
        "touch",
        lambda st, v, size: touch_step(st, v, ZIPF),
        lambda c, st, v, size: c_touch_step(c, st, v, ZIPF),
        lambda numpy, st, v, size: numpy.touch_by_rank(st, v, touches(st, v)[0], WRITES_PERMILLE),
        all_pages,
        open_windows,
    ),
    "reclaim": Case(
        "page out",
        lambda st, v, size: swap.page_out_vm(st, v, size // 2, NO_GOAL),
        lambda c, st, v, size: c.page_out_vm(st, v, size // 2, NO_GOAL),
        lambda numpy, st, v, size: numpy.page_out_vm(st, v, size // 2, NO_GOAL),
        frames_only,
    ),
    "swap-in": Case(
        "read of a page, half are in swap",
        lambda st, v, size: touch_many(st, v, size // 2, 0),
        lambda c, st, v, size: c.touch_many(st, v, size // 2, 0),
        lambda numpy, st, v, size: numpy.touch_many(st, v, size // 2, 0),
        all_pages,
        page_out_half,
    ),
    "sampling": Case(
        "page of the VM",
        lambda st, v, size: on_first_row(st, v, sample.run),
        lambda c, st, v, size: on_first_row(st, v, c.sample_all),
        lambda numpy, st, v, size: on_first_row(st, v, numpy.sample_all),
        all_pages,
        end_periods,
        part=1,
    ),
}


@pytest.fixture(scope="module")
def c(tmp_path_factory: pytest.TempPathFactory) -> CKernels:
    """The C twins; skips where nothing can compile them."""
    if compiler() is None:
        pytest.skip(f"no C compiler ({COMMAND[0]}) to compare with")
    return CKernels(tmp_path_factory.mktemp("c"))


@pytest.fixture(scope="module", params=SIZES)
def start(request: pytest.FixtureRequest) -> tuple[str, HostState, Frozen]:
    """Name of the size, a host's arrays, and what they were."""
    st = booted(SIZES[request.param]).state
    return request.param, st, Frozen(st)


@pytest.mark.parametrize("name", CASES)
def test_a_kernel_against_c_and_numpy(
    name: str, start: tuple[str, HostState, Frozen], c: CKernels, tables: Tables
) -> None:
    size, st, origin = start
    case = CASES[name]
    origin.restore(st)
    case.prepare(st)
    begin = Frozen(st)
    numpy = NumpyKernels(st)
    sizes = {v: int(st.vms[v].size_slots) for v in rows(st)}
    works: dict[str, Callable[[], object]] = {
        "hostsim": lambda: [case.hostsim(st, v, n) for v, n in sizes.items()],
        "c": lambda: [case.c(c, st, v, n) for v, n in sizes.items()],
        "numpy": lambda: [case.numpy(numpy, st, v, n) for v, n in sizes.items()],
    }
    check_equal(case, st, begin, works)
    times = in_turns(works, lambda: begin.restore(st), TURNS[size])
    per = 1e9 * case.part / len(st.page)
    ns = {name: statistics.median(took) * per for name, took in times.items()}
    tables.add(
        TABLE,
        {
            "kernel": name,
            "host": size,
            "hostsim / C": ratio(times["hostsim"], times["c"]),
            "NumPy / hostsim": ratio(times["numpy"], times["hostsim"]),
            "hostsim, ns": ns["hostsim"],
            "C, ns": ns["c"],
            "per": case.unit,
        },
    )


def check_equal(
    case: Case, st: HostState, begin: Frozen, works: dict[str, Callable[[], object]]
) -> None:
    """The three return the same and leave the same. Also compiles and warms up."""
    begin.restore(st)
    returned = works["hostsim"]()
    same, left = case.same(st), Frozen(st)
    begin.restore(st)
    assert works["c"]() == returned
    assert left.first_difference(st) is None
    begin.restore(st)
    assert works["numpy"]() == returned
    found = case.same(st)
    assert [key for key in same if found[key] != same[key]] == []
