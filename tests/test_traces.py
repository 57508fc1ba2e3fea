"""The normal form: what is stored comes back, what is malformed is refused by name and value."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_tools import cut_azure_sample

from cluster import trace_store
from cluster.traces import (
    Trace,
    TraceError,
    content_digest,
    load_input,
    load_trace,
    save_trace,
)
from hostsim.units import GIB, MIB

REPO = Path(__file__).parents[1]
ARRIVALS = REPO.parent / "shared" / "data" / "azure-v1-arrivals"
SAMPLE = REPO / "scenarios" / "traces" / "azure-v1-sample"
SAMPLE_BYTES_MAX = 300_000


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


def a_trace() -> Trace:
    """Two VMs with usage and one without."""
    return Trace(
        names=np.array(["a", "b", "c"], object),
        start_s=ints(0, 300, 600),
        stop_s=ints(900, -1, 700),
        vcpus=ints(1, 2, 4),
        memory_bytes=ints(GIB, 2 * GIB, 4 * GIB),
        cpu_capacity_mhz=np.array([2600.0, np.nan, 5200.5]),
        offsets=ints(0, 3, 4, 4),
        t_s=ints(0, 300, 600, 300),
        active_bytes=ints(MIB, -1, 0, 2 * GIB),
        cpu_permille=ints(0, 1000, -1, 250),
    )


def same(one: Trace, other: Trace) -> bool:
    return all(
        np.array_equal(
            getattr(one, field.name),
            getattr(other, field.name),
            equal_nan=field.name == "cpu_capacity_mhz",
        )
        for field in fields(Trace)
    )


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    folder = tmp_path / "stored"
    save_trace(a_trace(), folder, {"format": "test"})
    return folder


def test_what_is_stored_comes_back(stored: Path) -> None:
    assert same(load_trace(stored), a_trace())
    assert same(load_input(stored), a_trace())
    facts = json.loads((stored / "import.json").read_text())
    assert facts["content_digest"] == content_digest(a_trace())
    assert sorted(entry.name for entry in stored.iterdir()) == [
        "import.json",
        "usage.parquet",
        "vms.parquet",
    ]


def test_a_trace_without_usage_has_no_usage_file(tmp_path: Path) -> None:
    none = ints()
    bare = replace(
        a_trace(), offsets=ints(0, 0, 0, 0), t_s=none, active_bytes=none, cpu_permille=none
    )
    save_trace(bare, tmp_path / "bare", {})
    assert not (tmp_path / "bare" / "usage.parquet").exists()
    assert same(load_trace(tmp_path / "bare"), bare)


def test_digest_is_of_the_content_and_not_of_the_path(stored: Path, tmp_path: Path) -> None:
    save_trace(a_trace(), tmp_path / "deep" / "elsewhere", {"format": "other"})
    elsewhere = load_trace(tmp_path / "deep" / "elsewhere")
    assert content_digest(elsewhere) == content_digest(load_trace(stored))


@pytest.mark.parametrize("name", [field.name for field in fields(Trace)])
def test_digest_sees_every_field(name: str) -> None:
    values = getattr(a_trace(), name).copy()
    values[0] = "0" if name == "names" else values[0] + 1
    assert content_digest(replace(a_trace(), **{name: values})) != content_digest(a_trace())


def test_digest_tells_names_apart_that_join_alike() -> None:
    one = replace(a_trace(), names=np.array(["a", "bc", "d"], object))
    other = replace(a_trace(), names=np.array(["ab", "c", "d"], object))
    assert content_digest(one) != content_digest(other)


VM_WRONG: list[tuple[str, Any, str]] = [
    ("vm", ["a", "a", "c"], "row 1: is 'a'; must be unique"),
    ("vm", ["b", "a", "c"], "row 1: is 'a'; must be sorted by name"),
    ("vm", ["a", None, "c"], "column 'vm', row 1: is null; must be 1 to 200 printable"),
    ("vm", ["", "b", "c"], "column 'vm', row 0: is ''"),
    ("vm", ["a", "b\x1b[0m", "c"], "column 'vm', row 1"),
    ("vm", ["a", "b", "c" * 201], "column 'vm', row 2"),
    ("vm", [1, 2, 3], "column 'vm' is int64; must be string"),
    ("start_s", [0, -1, 600], "column 'start_s', row 1: is -1; must be from 0 to"),
    ("start_s", [0, None, 600], "column 'start_s', row 1: is null"),
    ("start_s", [0.0, float("nan"), 1.0], "column 'start_s' is double; must be an integer"),
    ("start_s", [True, False, True], "column 'start_s' is bool; must be an integer"),
    ("stop_s", [900, None, 600], "column 'stop_s', row 2: is 600; must be above start_s"),
    ("stop_s", [900, -1, 700], "column 'stop_s', row 1: is -1; must be from 1 to 3162240000"),
    ("vcpus", [1, 0, 4], "column 'vcpus', row 1: is 0; must be from 1 to 1024"),
    ("vcpus", [1, 2, 5000], "column 'vcpus', row 2: is 5000"),
    ("memory_bytes", [GIB, 0, GIB], "column 'memory_bytes', row 1: is 0; must be from 1048576"),
    ("memory_bytes", [GIB, 1 << 60, GIB], "column 'memory_bytes', row 1"),
    ("memory_bytes", ["1", "2", "3"], "column 'memory_bytes' is string; must be an integer"),
    ("memory_bytes", [GIB, 0.5, GIB], "column 'memory_bytes' is double; must be an integer"),
    ("cpu_capacity_mhz", [1.0, float("nan"), 1.0], "column 'cpu_capacity_mhz', row 1: is nan"),
    ("cpu_capacity_mhz", [1.0, 0.0, 1.0], "row 1: is 0.0; must be above 0, at most 1e+09, or null"),
    ("cpu_capacity_mhz", [1, 2, 3], "column 'cpu_capacity_mhz' is int64; must be a floating"),
]
USAGE_WRONG: list[tuple[str, Any, str]] = [
    ("vm", ["a", "a", "a", "z"], "column 'vm', row 3: is 'z'; must be a VM of vms.parquet"),
    ("vm", ["b", "b", "b", "a"], "column 'vm', row 3"),
    ("vm", ["a", "a", None, "b"], "column 'vm', row 2: is null"),
    ("t_s", [0, 300, 300, 300], "column 't_s', row 2: is 300; must be above the row before"),
    ("t_s", [0, 600, 300, 300], "column 't_s', row 2: is 300; must be above the row before"),
    ("t_s", [0, 300, 600, 0], "column 't_s', row 3: is 0; must be at or after the VM's start_s"),
    ("t_s", [0, 300, 900, 300], "column 't_s', row 2: is 900; must be before the VM's stop_s"),
    ("t_s", [0, 300, None, 300], "column 't_s', row 2: is null; must be from 0"),
    ("active_bytes", [GIB + 1, 0, 0, 0], "row 0: is 1073741825; must be at most the VM's memory"),
    ("active_bytes", [0, -5, 0, 0], "column 'active_bytes', row 1: is -5"),
    ("active_bytes", [0.0, float("nan"), 0.0, 0.0], "column 'active_bytes' is double"),
    ("cpu_permille", [0, 1001, 0, 0], "row 1: is 1001; must be from 0 to 1000, or null"),
]


@pytest.mark.parametrize(
    ("file", "column", "values", "message"),
    [("vms", *case) for case in VM_WRONG] + [("usage", *case) for case in USAGE_WRONG],
)
def test_wrong_values_are_refused_by_file_column_and_value(
    stored: Path, file: str, column: str, values: Any, message: str
) -> None:
    path = stored / f"{file}.parquet"
    table = pq.read_table(path)
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, column, pa.array(values)), path)
    with pytest.raises(TraceError) as caught:
        load_trace(stored)
    assert message in str(caught.value)
    assert caught.value.path == path


def _rename(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"_s", b"_\xff"))


def _flip(path: Path) -> None:
    """Change the first table page: values stay within bounds, so only its checksum can tell."""
    wrecked = bytearray(path.read_bytes())
    for i in range(60, 75):
        wrecked[i] ^= 1
    path.write_bytes(wrecked)


def _drop(path: Path) -> None:
    pq.write_table(pq.read_table(path).drop_columns(["vm"]), path)


def _add(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.append_column("note", table["vm"]), path)


def _twice(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.append_column("vm", table["vm"]), path)


WRECKS: list[tuple[Callable[[Path], Any], str]] = [
    (_drop, "must be vm, "),
    (_add, "note; must be vm, "),
    (_twice, "must be vm, "),
    (_rename, "is not a readable Parquet file"),
    (_flip, "is not a readable Parquet file"),
    (lambda path: path.write_bytes(b""), "is not a readable Parquet file"),
    (lambda path: path.write_bytes(b"vm,start_s\na,0\n"), "is not a readable Parquet file"),
    (lambda path: path.write_bytes(path.read_bytes()[:-9]), "is not a readable Parquet file"),
    (lambda path: path.write_bytes(path.read_bytes()[40:]), "is not a readable Parquet file"),
    (lambda path: (path.unlink(), path.mkdir()), "is missing"),
]


@pytest.mark.parametrize("file", ["vms", "usage"])
@pytest.mark.parametrize(("wreck", "message"), WRECKS)
def test_files_that_are_no_such_table_are_refused(
    stored: Path, file: str, wreck: Callable[[Path], Any], message: str
) -> None:
    path = stored / f"{file}.parquet"
    wreck(path)
    with pytest.raises(TraceError) as caught:
        load_trace(stored)
    assert message in caught.value.message
    assert caught.value.path == path


def test_a_missing_empty_or_far_too_large_table_is_refused(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(trace_store, "ROWS_MAX", 3)
        with pytest.raises(
            TraceError, match=r"usage\.parquet: is far too large: 4 rows, .* 3 rows"
        ):
            load_trace(stored)
    with monkeypatch.context() as patch:
        patch.setattr(trace_store, "BYTES_MAX", 10)
        with pytest.raises(TraceError, match=r"vms\.parquet: is far too large: .* 10 bytes"):
            load_trace(stored)
    path = stored / "vms.parquet"
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(TraceError, match="holds no VM"):
        load_trace(stored)
    path.unlink()
    with pytest.raises(TraceError, match=r"vms\.parquet: is missing"):
        load_trace(stored)


def test_only_an_import_is_replaced(stored: Path, tmp_path: Path) -> None:
    other = replace(a_trace(), vcpus=ints(3, 3, 3))
    save_trace(other, stored, {})
    assert same(load_trace(stored), other)
    (stored / "notes.txt").write_text("mine")
    with pytest.raises(TraceError, match=r"holds 'notes\.txt': will not be replaced"):
        save_trace(a_trace(), stored, {})
    assert same(load_trace(stored), other)
    (stored / "notes.txt").unlink()
    (stored / "import.json").write_text("{}")
    with pytest.raises(TraceError, match=r"has no import\.json of an import"):
        save_trace(a_trace(), stored, {})
    (stored / "import.json").write_text("{")
    with pytest.raises(TraceError, match="cannot be replaced"):
        save_trace(a_trace(), stored, {})
    (tmp_path / "file").write_text("")
    with pytest.raises(TraceError, match="cannot be replaced"):
        save_trace(a_trace(), tmp_path / "file", {})
    (tmp_path / "empty").mkdir()
    save_trace(a_trace(), tmp_path / "empty", {})
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["empty", "file", "stored"]


def test_a_failed_write_leaves_the_former_trace(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: Any, **_kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trace_store.pq, "write_table", full)
    with pytest.raises(TraceError, match="cannot be written: No space left"):
        save_trace(a_trace(), stored, {})
    assert same(load_trace(stored), a_trace())
    assert [entry.name for entry in stored.parent.iterdir()] == ["stored"]


def test_the_sample_is_small_attributed_and_whole() -> None:
    trace = load_trace(SAMPLE)
    assert sum(path.stat().st_size for path in SAMPLE.iterdir()) <= SAMPLE_BYTES_MAX
    readme = (SAMPLE / "README.md").read_text(encoding="utf-8")
    assert "CC-BY 4.0" in readme and "Azure Public Dataset" in readme
    assert json.loads((SAMPLE / "import.json").read_text())["licence"] == "CC-BY 4.0"
    assert len(trace.names) >= 320
    assert trace.start_s.max() < 6 * 3600 and trace.stop_s.max() < 6 * 3600
    assert trace.memory_bytes.max() <= 28 * GIB


@pytest.mark.skipif(not ARRIVALS.is_dir(), reason="needs ../shared/data/azure-v1-arrivals")
def test_the_sample_is_what_the_tool_cuts() -> None:
    trace, facts = cut_azure_sample.cut(ARRIVALS)
    assert same(load_trace(SAMPLE), trace)
    readme = (SAMPLE / "README.md").read_text(encoding="utf-8")
    assert readme == cut_azure_sample.readme(trace, facts)
