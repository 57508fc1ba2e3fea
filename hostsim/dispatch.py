"""How numba is made to compile a tick: two hundred functions, linked and optimised as one.

numba compiles each function that another calls by itself: it links, optimises and loads it with all
that it calls, and again inside each of its callers. That took three quarters of the time. Here a
function that other kernels call is a part, which is only lowered to code; what Python calls is the
whole. (Tried: a lower level of optimisation, or none of straight-line code, gained nothing, as most
of the time is numba's own, in Python.)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import binding
from numba.core import (
    bytecode,
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


_AS_PART = {"no_compile": True, "no_cpython_wrapper": True}
_DEFAULTS = {name: option.default for name, option in compiler.Flags.options.items()}


class _Part(codegen.JITCodeLibrary):
    """Code of a kernel as other kernels call it: not optimised, linked or loaded on its own."""

    def _optimize_functions(self, module: Any) -> None:
        pass

    def finalize(self) -> None:
        self._finalized = True


class _Made(_Part):
    """Code that another process made of some kernels, with all that they call."""

    def __init__(self, codegen: Any, code: bytes) -> None:
        super().__init__(codegen, "made elsewhere")
        self._final_module = binding.parse_bitcode(code)
        self.finalize()


class _Whole(codegen.JITCodeLibrary):
    """Code of a kernel as Python calls it, with all that it calls."""

    def finalize(self) -> None:
        self._linking_libraries = _with_all_they_call(self._linking_libraries)
        super().finalize()

    def _optimize_final_module(self) -> None:
        # numba goes through the module twice, first to find reference counts: kernels have none.
        passes, builder = self._codegen._module_pass_manager()
        passes.run(self._final_module, builder)


def _with_all_they_call(libraries: Sequence[Any]) -> list[Any]:
    """Libraries and those that they need, each after one that needs it: LLVM drops what none does.
    Those that are complete come last, lest functions be taken from them whose own needs are not."""
    linked: dict[Any, None] = {}
    waiting = list(libraries)
    while waiting:
        library = waiting.pop()
        if library not in linked:
            linked[library] = None
            if isinstance(library, _Part):
                waiting += library._linking_libraries
    return sorted(linked, key=lambda library: isinstance(library, _Made))


class _Inner(registry.CPUDispatcher):
    """A kernel as other kernels call it: a part of what they are compiled to."""

    def __init__(self, function: Any, options: dict[str, Any]) -> None:
        super().__init__(function, targetoptions=options)
        self.parts: dict[Any, _Part] = {}
        self.offers: dict[Any, Callable[[], _Made | None]] = {}

    def get_call_template(self, args: Any, kws: Any) -> Any:
        """A number written out is a number: numba would compile the function for it once more."""
        return super().get_call_template(tuple(map(types.unliteral, args)), kws)

    def compile(self, sig: Any) -> Any:
        """The key under which the caller finds the code."""
        args, _ = sigutils.normalize_signature(sig)
        if args not in self.overloads and not self._take(args):
            part = _Part(_codegen(self), self.py_func.__qualname__)
            self._keep(args, part, _compile(self, args, part, **_AS_PART))
        compiled: Any = self.overloads[args]
        return compiled.fndesc

    def _take(self, args: Any) -> bool:
        """Use what was made elsewhere, if it was offered and is code of this kernel."""
        part = self.offers[args]() if args in self.offers else None
        if part is None:
            return False
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
            abi_tags=[_flags_of(self, **_AS_PART).get_mangle_string()],
        )
        if descriptor.llvm_func_name not in [one.name for one in part.get_defined_functions()]:
            return False
        result = compiler.compile_result(
            fndesc=descriptor, signature=templates.signature(types.none, *args)
        )
        self._keep(args, part, result)
        return True

    def _keep(self, args: Any, part: _Part, compiled: Any) -> None:
        self.parts[args] = part
        self.targetctx.insert_user_function(compiled.fndesc, compiled.fndesc, [part])
        self.overloads[args] = compiled

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

    def offer(self, args: Any, find: Callable[[], _Made | None]) -> None:
        """When another kernel first calls this one, which returns nothing, with arguments of these
        types, `find` gives its code; it is compiled where that gives None, or code of others."""
        self._inner.offers[args] = find

    def withdraw(self) -> None:
        """Compile as if nothing had been offered; what was taken is kept."""
        self._inner.offers.clear()


def lowered(wanted: Sequence[tuple[Kernel, Any]]) -> bytes:
    """For another process: bitcode of kernels for arguments of some types, with all they call."""
    parts = []
    with (
        patches.fit_for_kernels(),
        patches.instead(bytecode.FunctionIdentity, "_unique_ids", lambda _: _ELSEWHERE),
    ):
        for kernel, args in wanted:
            name = kernel._inner.compile(args).llvm_func_name
            parts.append(kernel._inner.parts[args])
            parts[-1]._final_module.get_function(name).linkage = "weak_odr"  # if nothing calls it
        together = _Part(_codegen(wanted[0][0]), "together")._final_module
        for part in _with_all_they_call(parts):
            together.link_in(part._get_module_for_linking(), preserve=True)
        return bytes(together.as_bitcode())


def made(kernel: Kernel, code: bytes) -> _Made:
    """What `lowered` made in another process, as all kernels can use it."""
    return _Made(_codegen(kernel), code)


_ELSEWHERE = itertools.count(1 << 32)
"""Numbers in names of numba's own functions in `lowered`: the other process comes not so far."""


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
