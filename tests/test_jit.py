"""Compiled kernels: the cache is never stale, and compiling changes no result."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import pytest
from crowded_hosts import SECOND, crowded_host
from host_builders import counter
from numba.core import base, types
from numba.np import arrayobj

import hostsim
from hostsim import dispatch, jit, snapshot

PACKAGE = Path(hostsim.__file__).parent
TESTS = Path(__file__).parent


def folder(monkeypatch: pytest.MonkeyPatch, **environment: str) -> Path:
    """The cache folder under another environment."""
    monkeypatch.delenv(jit.CACHE_VARIABLE, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return jit._cache_folder()


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package's sources in another place, where the cache folder is computed."""
    there = tmp_path / "hostsim"
    shutil.copytree(PACKAGE, there, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(jit, "__file__", str(there / "jit.py"))
    return there


def test_equal_sources_have_one_cache_wherever_they_lie(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = folder(monkeypatch).name
    assert name.startswith("kernels-") and len(name) == len("kernels-") + 16
    monkeypatch.undo()
    assert folder(monkeypatch).name == name


@pytest.mark.parametrize("module", sorted(path.name for path in PACKAGE.glob("*.py")))
def test_a_change_in_any_source_changes_the_cache_folder(
    module: str, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any: numba compares only the file of the kernel itself, not those of what it calls."""
    before = folder(monkeypatch)
    with (copied / module).open("a") as file:
        file.write("\n")
    assert folder(monkeypatch) != before


def test_a_new_source_and_another_numba_change_the_cache_folder(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [folder(monkeypatch)]
    (copied / "new.py").write_text("x = 1\n")
    folders.append(folder(monkeypatch))
    monkeypatch.setattr(numba, "__version__", "0.0.1")
    folders.append(folder(monkeypatch))
    assert len(set(folders)) == 3


def test_the_environment_moves_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = {"HOME": str(tmp_path / "home")}
    default = folder(monkeypatch, **home)
    moved = folder(monkeypatch, **home, ESXSIM_CACHE=str(tmp_path / "caches"))
    assert default.parent == tmp_path / "home" / ".cache" / "esxsim"
    assert moved.parent == tmp_path / "caches"
    assert moved.name == default.name
    assert folder(monkeypatch, **home, ESXSIM_CACHE="") == default


@pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="runs uncompiled: no cache")
def test_a_cache_is_warm_once_the_pipeline_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever numba calls its files: the cache of this process is looked at, then parts of it."""
    crowded_host(vms=()).advance(SECOND)
    assert jit.is_warm()
    files = sorted(jit.CACHE_FOLDER.glob("*.nbi"))
    pipeline = [path for path in files if path.name.startswith("epochs.run-")]
    assert len(pipeline) == 1 and len(files) > 1
    monkeypatch.setattr(jit, "CACHE_FOLDER", tmp_path)
    assert not jit.is_warm()
    for path in files:
        if path not in pipeline:
            (tmp_path / path.name).touch()
    assert not jit.is_warm()
    (tmp_path / pipeline[0].name).touch()
    assert jit.is_warm()


LOADED = """
from hostsim import jit, rng
rng.stream(1, 2, 3, 4)
print(jit.__file__, rng.stream.stats.cache_path, sum(rng.stream.stats.cache_hits.values()))
"""


def loaded_from(folder: Path, cache: Path) -> list[str]:
    """What a process that imports the package from there, and calls one kernel, says of it."""
    environment = os.environ | {jit.CACHE_VARIABLE: str(cache)}
    command = [sys.executable, "-c", LOADED]
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


@pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="runs uncompiled: no cache")
def test_a_copy_loads_the_kernels_that_the_original_compiled(copied: Path, tmp_path: Path) -> None:
    original, copy = (
        loaded_from(folder, tmp_path / "cache") for folder in (PACKAGE.parent, copied.parent)
    )
    assert (original[0], copy[0]) == (str(PACKAGE / "jit.py"), str(copied / "jit.py"))
    assert original[1] == copy[1] and Path(copy[1]).parent == tmp_path / "cache"
    assert (original[2], copy[2]) == ("0", "1")


@pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="runs uncompiled: no cache")
def test_without_a_folder_to_write_to_kernels_are_compiled_in_memory(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert loaded_from(PACKAGE.parent, file / "cache")[1:] == ["None", "0"]


def test_other_users_of_numba_keep_their_settings() -> None:
    assert str(jit.CACHE_FOLDER) != numba.config.CACHE_DIR
    assert not numba.config.CACHE_LOCATOR_CLASSES


@pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="runs uncompiled: compiles nothing")
def test_other_users_of_numba_keep_its_functions() -> None:
    """What is replaced while a kernel compiles, right or wrong, is there again afterwards."""

    def functions() -> list[object]:
        return [
            arrayobj.fix_integer_index,
            types.functions.BaseFunction.get_call_type,
            base.BaseContext.get_abi_sizeof,
            base.BaseContext.mangler,
        ]

    before = functions()
    seen: list[list[object]] = []

    def looks(value: int) -> int:
        return value + 1

    def fails(value: int) -> int:
        return value.nothing  # type: ignore[attr-defined, no-any-return]

    finalize = dispatch._Whole.finalize
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            dispatch._Whole, "finalize", lambda whole: (seen.append(functions()), finalize(whole))
        )
        assert dispatch.Kernel(looks, jit._OPTIONS)(1) == 2
        with pytest.raises(numba.TypingError):
            dispatch.Kernel(fails, jit._OPTIONS)(1)
    assert len(seen) == 1 and not any(a is b for a, b in zip(seen[0], before, strict=True))
    assert functions() == before


TINY = """
import sys
sys.path.insert(0, sys.argv[1])
import numba
from crowded_hosts import crowded_host
from host_builders import counter
from hostsim import snapshot
from hostsim.epochs import run
assert numba.config.DISABLE_JIT and not hasattr(run, "py_func")
host = crowded_host(frames=200, vms=(1, 2))
host.advance(int(sys.argv[2]))
print(snapshot.digest(host), counter(host, "swap_ins"))
"""


def test_uncompiled_kernels_give_the_same_digest() -> None:
    """The very same functions as Python: integer widths, division and order are the compiler's."""
    duration_ms = 12 * SECOND
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    command = [sys.executable, "-c", TINY, str(TESTS), str(duration_ms)]
    done = subprocess.run(
        command, env=environment, cwd=TESTS.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    host = crowded_host(frames=200, vms=(1, 2))
    host.advance(duration_ms)
    assert counter(host, "swap_ins") > 0
    assert done.stdout.split() == [snapshot.digest(host), str(counter(host, "swap_ins"))]
