"""What numba does otherwise while a kernel compiles: other users of numba keep theirs.

Most of it saves the time of looking up again what is known.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any

from numba.core import base, types
from numba.np import arrayobj

LASTING: list[str] = []
"""Functions that are called by name from what is compiled separately, perhaps elsewhere."""


@contextlib.contextmanager
def fit_for_kernels() -> Iterator[None]:
    """numba as kernels need it."""
    with contextlib.ExitStack() as changes:
        for change in (
            _no_collections,
            _no_negative_indexes,
            _known_operators,
            _known_sizes,
            _lasting_names,
        ):
            changes.enter_context(change())
        yield


@contextlib.contextmanager
def instead(owner: Any, name: str, made: Callable[[Any], Any]) -> Iterator[None]:
    """A function of numba's replaced by what `made` makes of it."""
    before = getattr(owner, name)
    setattr(owner, name, made(before))
    try:
        yield
    finally:
        setattr(owner, name, before)


def _no_negative_indexes() -> contextlib.AbstractContextManager[None]:
    """Indexes are taken as they are: kernels never count from the end, and code that makes sure of
    that at every access is slower to run and to compile."""

    def as_it_is(context: Any, builder: Any, kind: Any, index: Any, size: Any) -> Any:
        return context.cast(builder, index, kind, types.intp)

    return instead(arrayobj, "fix_integer_index", lambda before: as_it_is)


def _known_operators() -> contextlib.AbstractContextManager[None]:
    """Which version of an operator types ask for is found once: kernels ask thousands of times for
    hundreds, and numba tries those for whole arrays each time. A sixth of the time."""
    found: dict[Any, Any] = {}

    def remembering(find: Any) -> Any:
        def get_call_type(self: Any, context: Any, args: Any, kws: Any) -> Any:
            if kws:
                return find(self, context, args, kws)
            if (self, args) not in found:
                found[self, args] = find(self, context, args, kws)
            return found[self, args]

        return get_call_type

    return instead(types.functions.BaseFunction, "get_call_type", remembering)


def _known_sizes() -> contextlib.AbstractContextManager[None]:
    """The size of a type, for which numba has LLVM read a module of its own, is found once."""
    found: dict[Any, int] = {}

    def remembering(find: Any) -> Any:
        def get_abi_sizeof(self: Any, kind: Any) -> int:
            if kind not in found:
                found[kind] = find(self, kind)
            return found[kind]

        return get_abi_sizeof

    return instead(base.BaseContext, "get_abi_sizeof", remembering)


def _lasting_names() -> contextlib.AbstractContextManager[None]:
    """numba numbers the names of functions, each process anew."""

    def without_number(mangle: Any) -> Any:
        def mangler(
            self: Any, name: str, kinds: Any, *, abi_tags: Any = (), uid: Any = None
        ) -> Any:
            number = None if name in LASTING else uid
            return mangle(self, name, kinds, abi_tags=abi_tags, uid=number)

        return mangler

    return instead(base.BaseContext, "mangler", without_number)


@contextlib.contextmanager
def _no_collections() -> Iterator[None]:
    """Garbage collection off: the compiler makes millions of objects that live until its end, and
    looking through them all again and again takes a fifth of its time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
