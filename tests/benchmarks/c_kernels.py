"""The C twins of hostsim's kernels, compiled for this machine when a benchmark first needs them.

kernels.c works on the arrays of a HostState, through the table of addresses that compiled kernels
get. Its view of them, layout.h, is written here from hostsim's dtypes and constants, so that it
cannot differ from them.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from hostsim import fault, jit, program, ranks, rng, sample, share, state, swap
from hostsim.state import HostState

COMMAND = ("cc", "-O3", "-march=native", "-ffp-contract=off", "-std=gnu11", "-shared", "-fPIC")
"""No fused multiply-add: hostsim's estimates are the same on all CPUs, so have none."""
SOURCES = Path(__file__).parent
STATE_NAMES = (
    *("UNTOUCHED", "RESIDENT", "SHARED", "BALLOONED", "SWAPPED"),
    *("STATE", "HINT", "KIND", "ACCESSED", "USE_SHIFT", "FREE", "CACHE", "ANON"),
    *("UNIQUE", "STALE", "INDEX", "PPN_BITS", "LOW", "SWAP_IN", "COW", "N_CAUSES"),
)
RNG_NAMES = ("TOUCH", "SCAN", "SWAP", "SAMPLE")


def layout() -> str:
    """The header with hostsim's structures, places in the table of arrays, and constants."""
    lines = ["#include <stdint.h>"]
    for name, dtype in (("Host", state.HOST), ("Vm", state.VM)):
        lines.append("typedef struct {")
        assert dtype.names is not None
        for field in dtype.names:
            kind = dtype[field]
            assert kind.itemsize == 8, f"{name}.{field} is no 64-bit word"
            lines.append(f"    {'double' if kind == np.float64 else 'int64_t'} {field};")
        lines.append(f"}} {name};")
    values: dict[str, Any] = {f"ARRAY_{name}": i for i, name in enumerate(state.ARRAYS)}
    values |= {name: getattr(state, name) for name in STATE_NAMES}
    values |= {name: getattr(rng, name) for name in RNG_NAMES}
    values |= {"TABLE_COLUMNS": jit.TABLE_COLUMNS, "BLOCK": ranks.BLOCK}
    values |= {"NO_FRAME": fault.NO_FRAME, "NO_IO": fault.NO_IO, "UNIFORM": program.UNIFORM}
    values |= {"DRAWS_PER_PAGE": share.DRAWS_PER_PAGE, "VICTIM_LOOKS": swap.LOOKS}
    values |= {"SLOW_GAIN": sample.SLOW_GAIN, "FAST_GAIN": sample.FAST_GAIN}
    lines += [f"#define {name} ({value})" for name, value in values.items()]
    return "\n".join(lines) + "\n"


def compiler() -> str | None:
    """Path of the C compiler, if there is one."""
    return shutil.which(COMMAND[0])


class CKernels:
    """kernels.c, compiled into `folder`. Each method is as the hostsim kernel of the same name."""

    def __init__(self, folder: Path) -> None:
        (folder / "layout.h").write_text(layout(), encoding="utf-8")
        library = folder / "kernels.so"
        source = str(SOURCES / "kernels.c")
        options = ["-Wall", "-Wextra", "-Werror", f"-I{folder}"]
        command = [*COMMAND, *options, "-o", str(library), source]
        subprocess.run(command, check=True)
        self._library = ctypes.CDLL(str(library))

    def _call(self, name: str, st: HostState, *args: int) -> int:
        function = getattr(self._library, name)
        function.restype = ctypes.c_int64
        words = [ctypes.c_int64(arg) for arg in args]
        return int(function(ctypes.c_void_p(st.address), *words))

    def scan_vm(self, st: HostState, v: int, budget: int) -> int:
        return self._call("scan_vm", st, v, budget)

    def touch_many(self, st: HostState, v: int, n: int, is_write: int) -> int:
        return self._call("touch_many", st, v, n, is_write)

    def page_out_vm(self, st: HostState, v: int, n: int, free_goal: int) -> int:
        return self._call("page_out_vm", st, v, n, free_goal)

    def touch_window(
        self, st: HostState, v: int, n: int, touch_ns: int, writes: int, locality: int
    ) -> int:
        return self._call("touch_window", st, v, n, touch_ns, writes, locality)

    def sample_all(self, st: HostState) -> None:
        self._call("sample_all", st)
