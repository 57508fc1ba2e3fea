"""How numba is made to compile a tick: two hundred functions, linked and optimised as one.

numba compiles each function that another calls by itself: it links, optimises and loads it with all
that it calls, and again inside each of its callers. That took three quarters of the time. Here a
function that other kernels call is a part, which is only lowered to code; what Python calls is a
whole, and so are two large functions that lie apart, for another process to compile (`beside`).

Tried: a lower level of optimisation, or none of straight-line code, gained nothing, as most of the
time is numba's own, in Python; nor did refreshing numba's registries once only. Bitcode of parts
from the other process saved half as much, as optimising it was left to this one.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

from numba.core import (
    codegen,
    compiler,
    compiler_machinery,
    funcdesc,
    registry,
    sigutils,
    types,
)
from numba.core import typed_passes as typed
from numba.core import untyped_passes as untyped
from numba.core.typing import templates

from hostsim import patches


class _Passes(compiler.CompilerBase):
    """The passes of numba's compiler that kernels need: they have no closures, generators, `with`
    blocks or array expressions, for each of which numba looks through every function again, and no
    references, for which it would mark the last use of each variable."""

    def define_pipelines(self) -> list[Any]:
        passes = compiler_machinery.PassManager("kernel")
        for one in (
            untyped.TranslateByteCode,
            untyped.FixupArgs,
            untyped.IRProcessing,
            untyped.ReconstructSSA,
            typed.NopythonTypeInference,
            typed.PreLowerStripPhis,
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


class _Apart(_Part):
    """Stands for a kernel that lies elsewhere: what calls it needs it loaded, not linked."""

    def __init__(self, codegen: Any, kernel: Apart, args: Any) -> None:
        super().__init__(codegen, kernel.py_func.__name__)
        self.load = functools.partial(load, kernel.py_func.__module__, self.name, args)


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
        self._linking_libraries = [one for one in linked if not isinstance(one, _Apart)]
        self._loads = [one.load for one in linked if isinstance(one, _Apart)]
        self._reload_init.update(self._loads)  # numba calls them when it has this from the cache
        super().finalize()

    def _optimize_final_module(self) -> None:
        # numba goes through the module twice, first to find reference counts: kernels have none.
        passes, builder = self._codegen._module_pass_manager()
        passes.run(self._final_module, builder)
        for load_one in self._loads:  # only now: another process may be compiling it
            load_one()


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
        with patches.fit_for_kernels():
            return _compile(self, args, whole)


class Apart(Kernel):
    """A kernel that is a whole of its own to other kernels, too. It returns nothing."""

    wait: Callable[[], None] | None = None
    """Called before it is compiled or loaded: another process may be compiling it."""

    def __init__(self, function: Any, options: dict[str, Any]) -> None:
        super().__init__(function, options)
        self._inner = _InnerApart(function, options, self)
        patches.LASTING.append(f"{function.__module__}.{function.__qualname__}")

    def compile(self, sig: Any) -> Any:
        if self.wait is not None:
            self.wait()
        return super().compile(sig)


class _InnerApart(_Inner):
    """Such a kernel as others call it: by its name."""

    def __init__(self, function: Any, options: dict[str, Any], whole: Apart) -> None:
        super().__init__(function, options)
        self._whole = whole

    def compile(self, sig: Any) -> Any:
        args, _ = sigutils.normalize_signature(sig)
        if args not in self.overloads:
            part = self._parts[args] = _Apart(_codegen(self), self._whole, args)
            descriptor = funcdesc.FunctionDescriptor(
                native=True,
                modname=self.py_func.__module__,
                qualname=self.py_func.__qualname__,
                unique_name=self.py_func.__qualname__,
                doc="",
                typemap={},
                restype=types.none,
                calltypes={},
                args=(),
                kws={},
                mangler=self.targetctx.mangler,
                argtypes=args,
                abi_tags=[_flags_of(self._whole).get_mangle_string()],
            )
            self.targetctx.insert_user_function(part, descriptor, [part])
            self.overloads[args] = compiler.compile_result(
                fndesc=descriptor, signature=templates.signature(types.none, *args)
            )
        return self._parts[args]

    get_overload = compile


def load(module: str, name: str, args: Any) -> None:
    """Have a kernel compiled, or loaded from the cache, for arguments of these types."""
    getattr(importlib.import_module(module), name).compile(args)


def _codegen(dispatcher: Any) -> Any:
    return dispatcher.targetctx.codegen()


def _compile(dispatcher: Any, args: Any, library: Any, **more: bool) -> Any:
    """Have numba compile one function into `library`."""
    return compiler.compile_extra(
        dispatcher.typingctx,
        dispatcher.targetctx,
        dispatcher.py_func,
        args=args,
        return_type=None,
        flags=_flags_of(dispatcher, **more),
        locals={},
        library=library,
        pipeline_class=_Passes,
    )


def _flags_of(dispatcher: Any, **more: bool) -> _Flags:
    flags = _Flags()
    dispatcher.targetdescr.options.parse_as_flags(flags, dispatcher.targetoptions)
    for name, value in more.items():
        setattr(flags, name, value)
    return flags
