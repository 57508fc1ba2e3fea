"""The one place that knows numba.

Kernels are plain functions over flat arrays, marked `@kernel`; NUMBA_DISABLE_JIT=1 runs them as
Python. Compiled code is cached on disk in a folder named by a digest of this package's sources, of
numba's version and of the processor, because numba does not notice a changed callee in another
file. Equal sources share it wherever they lie: a second checkout, or a copy that a job carries,
need not compile.
fastmath stays off: results must not depend on how a compiler reorders floats.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import binding, ir
from numba import extending
from numba.core import caching, types
from numba.core.typing import templates
from numba.np import arrayobj

from hostsim.dispatch import Apart, Kernel

Function = TypeVar("Function", bound=Callable[..., object])

CACHE_VARIABLE = "ESXSIM_CACHE"
"""Environment variable that moves the kernel cache; default ~/.cache/esxsim."""


def _cache_folder() -> Path:
    processor = binding.get_host_cpu_name()  # what is compiled for another would not be loaded
    digest = hashlib.sha256(f"numba {numba.__version__} {processor}".encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    root = os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "esxsim"
    return Path(root) / f"kernels-{digest.hexdigest()[:16]}"


CACHE_FOLDER = _cache_folder()


def _can_write(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


CACHES = _can_write(CACHE_FOLDER)
"""False in a container whose file system is read-only: every process then compiles for itself."""


class KernelLocator(caching._CacheLocator):
    """Tells numba where a kernel is kept: its own locators have a folder for every path."""

    def __init__(self, line: int) -> None:
        self.line = line

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> KernelLocator:
        return cls(py_func.__code__.co_firstlineno)

    def get_cache_path(self) -> str:
        return str(CACHE_FOLDER)

    def get_source_stamp(self) -> str:
        return CACHE_FOLDER.name

    def get_disambiguator(self) -> str:
        return str(self.line)


i64 = cast(Callable[[Any], int], np.int64)
"""np.int64 under the type that the engine gives every integer."""


_LOCATORS = "CACHE_LOCATOR_CLASSES"
_OPTIONS: dict[str, Any] = {
    "nopython": True,
    "_nrt": False,
    "error_model": "numpy",
    "no_cfunc_wrapper": True,
}
"""Kernels never allocate, so arrays need no reference counts: counting them made calls 100 times
slower. A division by zero is a bug that tests find in uncompiled runs, not worth a branch each."""


_INTERPRETED = bool(getattr(numba.config, "DISABLE_JIT"))  # noqa: B009  numba declares no setting


def _dispatched(
    function: Function, caches: bool, options: dict[str, Any], kind: type[Kernel] = Kernel
) -> Function:
    if _INTERPRETED:
        return function
    found = kind(function, options)
    if caches:
        others = getattr(numba.config, _LOCATORS)
        setattr(numba.config, _LOCATORS, f"{__name__}.{KernelLocator.__name__}")
        try:
            found.enable_caching()
        finally:
            setattr(numba.config, _LOCATORS, others)
    return cast(Function, found)


def kernel(function: Function) -> Function:
    """Compile on first call, or load from the cache."""
    return _dispatched(function, CACHES, _OPTIONS)


def small(function: Function) -> Function:
    """As `kernel`, for one-liners: always inlined by LLVM."""
    return _dispatched(function, CACHES, _OPTIONS | {"forceinline": True})


def apart(function: Function) -> Function:
    """As `kernel`, for a large one that returns nothing: a whole of its own to other kernels, too,
    so that another process can compile it, see `beside`. Calls of it are not optimised."""
    return _dispatched(function, CACHES, _OPTIONS, Apart)


def is_warm() -> bool:
    """Whether compiled kernels are on disk, so that the first tick will not compile."""
    return any(CACHE_FOLDER.glob("epochs.run-*.nbi"))


class Arrays(types.Type):
    """The type, inside kernels, of an object of arrays: one pointer to a table of their addresses.

    Passing a tuple of twenty arrays instead costs a hundred arguments a call, in time and in
    compile time.
    """

    def __init__(self, name: str, fields: dict[str, tuple[np.dtype[Any], int]]) -> None:
        self.fields = {
            field: types.Array(numba.from_dtype(dtype), ndim, "C")
            for field, (dtype, ndim) in fields.items()
        }
        super().__init__(name=name)


@extending.register_model(Arrays)
class _ArraysModel(extending.models.OpaqueModel):
    """A bare pointer."""


DIMENSIONS_MAX = 3
TABLE_COLUMNS = 1 + DIMENSIONS_MAX
"""A row of the table of addresses: data pointer, then the shape."""


def address_table(arrays: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.int64]:
    """(n_arrays, TABLE_COLUMNS) int64. The arrays must be C-contiguous, and outlive the table."""
    assert all(array.flags.carray for array in arrays), "C-contiguous, aligned, to be written to"
    rows = [(array.ctypes.data, *array.shape, *[0] * DIMENSIONS_MAX) for array in arrays]
    return np.array([row[:TABLE_COLUMNS] for row in rows], np.int64)


@extending.unbox(Arrays)
def _unbox_arrays(typ: Any, obj: Any, c: Any) -> Any:
    """Python object -> pointer to the table whose address its `address` attribute holds."""
    attribute = c.pyapi.object_getattr_string(obj, "address")
    address = c.unbox(types.intp, attribute)
    c.pyapi.decref(attribute)
    pointer = c.builder.inttoptr(address.value, c.context.get_value_type(typ))
    return extending.NativeValue(pointer, is_error=address.is_error)


@templates.infer_getattr
class _ArraysFields(templates.AttributeTemplate):
    key = Arrays

    def generic_resolve(self, typ: Any, attr: str) -> Any:  # type: ignore[override]
        return typ.fields.get(attr)


@extending.lower_getattr_generic(Arrays)
def _field(context: Any, builder: Any, typ: Arrays, value: Any, attr: str) -> Any:
    """Build the array from its row of the table."""
    array_type = typ.fields[attr]
    row = list(typ.fields).index(attr) * TABLE_COLUMNS
    word = context.get_value_type(types.intp)
    table = builder.bitcast(value, word.as_pointer())

    def load(column: int) -> Any:
        at = builder.gep(table, [ir.Constant(word, row + column)])
        found = builder.load(at)
        # No kernel writes to the table: without this each store makes LLVM load addresses again.
        found.set_metadata("invariant.load", builder.module.add_metadata([]))
        return found

    shape = [load(1 + axis) for axis in range(array_type.ndim)]
    item_bytes = context.get_abi_sizeof(context.get_data_type(array_type.dtype))
    strides = [ir.Constant(word, item_bytes)]
    for length in reversed(shape[1:]):
        strides.insert(0, builder.mul(strides[0], length))
    array = context.make_array(array_type)(context, builder)
    arrayobj.populate_array(
        array,
        data=builder.inttoptr(load(0), context.get_data_type(array_type.dtype).as_pointer()),
        shape=shape,
        strides=strides,
        itemsize=item_bytes,
        meminfo=None,
    )
    return array._getvalue()


def _fetch(typingctx: Any, array: Any, index: Any) -> Any:
    """LLVM's prefetch of one element's cache line, to be written to, into every level."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        options = [ir.Constant(word, option) for option in (1, 3, 1)]
        builder.call(prefetch, [builder.bitcast(builder.gep(data, [args[1]]), byte), *options])
        return context.get_dummy_value()

    return types.void(array, types.int64), codegen


def _fetch_nothing(array: npt.NDArray[Any], index: int) -> None:
    """Interpreted, nothing is asked for early."""


fetch = cast(
    Callable[[npt.NDArray[Any], int], None],
    _fetch_nothing if _INTERPRETED else extending.intrinsic(_fetch),
)
"""fetch(array, index): ask memory for an element of a vector that will be needed soon. A hint:
nothing waits for it, and it may lie outside the vector."""


def opener(kind: Arrays) -> Callable[[Any], Any]:
    """For kernels that go from object to object: makes one of its `handle`.

    A handle is the object's address, as one element of an int64 array; interpreted, it is the
    object itself.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(kind))

    def opened(typingctx: Any, handle: Any) -> Any:
        return kind(types.int64), codegen

    if _INTERPRETED:
        return lambda handle: handle
    return cast(Callable[[Any], Any], extending.intrinsic(opened))


def handles(objects: Sequence[Any]) -> Any:
    """What a kernel is passed for several objects of arrays, which must outlive the call."""
    if _INTERPRETED:
        return list(objects)
    return np.array([one.address for one in objects], np.int64)
