"""How numba is made to compile a tick: two hundred functions, linked and optimised as one.

numba compiles each function that another calls by itself: it links, optimises and loads it with all
that it calls, and again inside each of its callers. That took three quarters of the time. Here a
function that other kernels call is a part, which is only lowered to code; what Python calls is the
whole. (Tried: a lower level of optimisation, or none of straight-line code, gained nothing, as most
of the time is numba's own, in Python.)
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any

from numba.core import base, codegen, compiler, compiler_machinery, registry, sigutils, types
from numba.core import typed_passes as typed
from numba.core import untyped_passes as untyped
from numba.np import arrayobj


class _Passes(compiler.CompilerBase):
    """The passes of numba's compiler that kernels need: they have no closures, generators, `with`
    blocks or array expressions, for each of which numba looks through every function again."""

    def define_pipelines(self) -> list[Any]:
        passes = compiler_machinery.PassManager("kernel")
        for one in (
            untyped.TranslateByteCode,
            untyped.FixupArgs,
            untyped.IRProcessing,
            untyped.ReconstructSSA,
            typed.NopythonTypeInference,
            typed.PreLowerStripPhis,
            typed.IRLegalization,
            typed.NativeLowering,
            typed.NoPythonBackend,
        ):
            passes.add_pass(one, one.__name__)
        passes.finalize()
        return [passes]


class _Flags(compiler.Flags):
    """numba's options, which are part of a key that it looks up for every call and operator that it
    compiles: read one by one, through descriptors, they took a seventh of the time."""

    __slots__ = ()

    def values(self) -> dict[str, Any]:
        return _DEFAULTS | self._values

    def __hash__(self) -> int:
        return 1  # numba's own is of the options' names alone, too


_DEFAULTS = {name: option.default for name, option in compiler.Flags.options.items()}


class _Part(codegen.JITCodeLibrary):
    """Code of a kernel as other kernels call it: not optimised, linked or loaded on its own."""

    def _optimize_functions(self, module: Any) -> None:
        pass

    def finalize(self) -> None:
        self._finalized = True


class _Whole(codegen.JITCodeLibrary):
    """Code of a kernel as Python calls it, with all that it calls."""

    def finalize(self) -> None:
        linked: dict[Any, None] = {}
        waiting = list(self._linking_libraries)
        while waiting:
            library = waiting.pop()
            if library not in linked:
                linked[library] = None
                if isinstance(library, _Part):
                    waiting += library._linking_libraries
        self._linking_libraries = list(linked)
        super().finalize()

    def _optimize_final_module(self) -> None:
        # numba goes through the module twice, first to find reference counts: kernels have none.
        passes, builder = self._codegen._module_pass_manager()
        passes.run(self._final_module, builder)


class _Inner(registry.CPUDispatcher):
    """A kernel as other kernels call it: a part of what they are compiled to."""

    def __init__(self, function: Any, options: dict[str, Any]) -> None:
        super().__init__(function, targetoptions=options)
        self._parts: dict[Any, _Part] = {}

    def get_call_template(self, args: Any, kws: Any) -> Any:
        """A number written out is a number: numba would compile the function for it once more."""
        return super().get_call_template(tuple(map(types.unliteral, args)), kws)

    def compile(self, sig: Any) -> Any:
        """The key under which the caller finds the code."""
        args, _ = sigutils.normalize_signature(sig)
        if args not in self.overloads:
            part = self._parts[args] = _Part(_codegen(self), self.py_func.__qualname__)
            compiled = _compile(self, args, part, no_compile=True, no_cpython_wrapper=True)
            self.targetctx.insert_user_function(part, compiled.fndesc, [part])
            self.overloads[args] = compiled
        return self._parts[args]

    get_overload = compile


class Kernel(registry.CPUDispatcher):
    """A kernel as Python calls it; to other kernels it shows its inner self."""

    def __init__(self, function: Any, options: dict[str, Any]) -> None:
        super().__init__(function, targetoptions=options)
        self._inner = _Inner(function, options)
        made: Any = self
        made._compiler._compile_core = self._compile_whole

    def get_call_template(self, args: Any, kws: Any) -> Any:
        return self._inner.get_call_template(args, kws)

    def get_overload(self, sig: Any) -> Any:
        return self._inner.get_overload(sig)

    def _compile_whole(self, args: Any, return_type: Any) -> Any:
        whole = _Whole(_codegen(self), self.py_func.__qualname__)
        whole.enable_object_caching()
        with _no_collections(), _no_negative_indexes(), _known_operators(), _known_sizes():
            return _compile(self, args, whole)


def _codegen(dispatcher: Any) -> Any:
    return dispatcher.targetctx.codegen()


def _compile(dispatcher: Any, args: Any, library: Any, **more: bool) -> Any:
    """Have numba compile one function into `library`."""
    flags = _Flags()
    dispatcher.targetdescr.options.parse_as_flags(flags, dispatcher.targetoptions)
    for name, value in more.items():
        setattr(flags, name, value)
    return compiler.compile_extra(
        dispatcher.typingctx,
        dispatcher.targetctx,
        dispatcher.py_func,
        args=args,
        return_type=None,
        flags=flags,
        locals={},
        library=library,
        pipeline_class=_Passes,
    )


@contextlib.contextmanager
def _instead(owner: Any, name: str, made: Callable[[Any], Any]) -> Iterator[None]:
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

    return _instead(arrayobj, "fix_integer_index", lambda before: as_it_is)


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

    return _instead(types.functions.BaseFunction, "get_call_type", remembering)


def _known_sizes() -> contextlib.AbstractContextManager[None]:
    """The size of a type, for which numba has LLVM read a module of its own, is found once."""
    found: dict[Any, int] = {}

    def remembering(find: Any) -> Any:
        def get_abi_sizeof(self: Any, kind: Any) -> int:
            if kind not in found:
                found[kind] = find(self, kind)
            return found[kind]

        return get_abi_sizeof

    return _instead(base.BaseContext, "get_abi_sizeof", remembering)


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
