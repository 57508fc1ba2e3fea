"""The one place that knows numba.

Kernels are plain functions over flat arrays, marked `@kernel`; NUMBA_DISABLE_JIT=1 runs them as
Python. Compiled code is cached on disk in a folder named by a digest of this package's sources and
of numba's version, because numba does not notice a changed callee in another file. fastmath stays
off: results must not depend on how a compiler reorders floats.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., object])

CACHE_VARIABLE = "ESXSIM_CACHE"
"""Environment variable that moves the kernel cache; default ~/.cache/esxsim."""


def _cache_folder() -> Path:
    digest = hashlib.sha256(f"numba {numba.__version__}".encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    root = os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "esxsim"
    return Path(root) / f"kernels-{digest.hexdigest()[:16]}"


CACHE_FOLDER = _cache_folder()
numba.config.CACHE_DIR = str(CACHE_FOLDER)


def kernel(function: Function) -> Function:
    """Compile on first call, or load from the cache."""
    return cast(Function, numba.njit(cache=True)(function))


def small(function: Function) -> Function:
    """As `kernel`, for one-liners: always inlined by LLVM, never cached on their own."""
    return cast(Function, numba.njit(forceinline=True)(function))


def is_warm() -> bool:
    """Whether compiled kernels are on disk, so that the first tick will not compile."""
    return any(CACHE_FOLDER.rglob("advance*.nbi")) if CACHE_FOLDER.is_dir() else False
