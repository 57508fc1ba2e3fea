"""Bitbrains readers: files as published, with their traps, become the normal form.

The CSV reader works on whole columns; its twin here parses cell by cell, and both must agree on
every value and on every count. What is random is the text of the files.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.trace_bitbrains import read_bitbrains_csv
from cluster.traces import (
    TraceError,
    content_digest,
    import_trace,
    load_input,
    load_trace,
)
from hostsim.units import GIB, KIB, MIB

GWA_HEADER = (
    "Timestamp [ms];\tCPU cores;\tCPU capacity provisioned [MHZ];\tCPU usage [MHZ];\tCPU usage [%];"
    "\tMemory capacity provisioned [KB];\tMemory usage [KB];\tDisk read throughput [KB/s]"
)
T = 1_376_314_846
"""A stamp of August 2013, in seconds."""


def gwa_row(t: Any = T, cores: Any = 2, mhz: Any = 5200, cpu: Any = 520, capacity: Any = 8 << 20,
            memory: Any = 1 << 20) -> str:  # fmt: skip
    return ";\t".join(str(cell) for cell in (t, cores, mhz, cpu, 10.0, capacity, memory, 0.5))


def gwa_file(path: Path, rows: Sequence[str], header: str = GWA_HEADER) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def nonzero(counts: Counter[str]) -> dict[str, int]:
    return {reason: n for reason, n in counts.items() if n}


def test_bitbrains_csv_reads_a_folder_as_published(tmp_path: Path) -> None:
    source = tmp_path / "rnd"
    gwa_file(source / "1.csv", [gwa_row(T + 300 * i, memory=1000.25 * i) for i in range(20)])
    gwa_file(source / "2.csv", [gwa_row((T + 300 * i) * 1000, mhz=0) for i in range(5)])
    summary = import_trace("bitbrains-csv", source, tmp_path / "out")
    trace = load_trace(tmp_path / "out")
    assert trace.names.tolist() == ["1", "2"]
    assert trace.start_s.tolist() == [0, 0]
    assert trace.stop_s.tolist() == [-1, 4 * 300 + 300]
    assert trace.memory_bytes.tolist() == [8 * GIB, 8 * GIB]
    assert trace.vcpus.tolist() == [2, 2]
    assert trace.active_bytes[:3].tolist() == [0, 1000.25 * KIB, 2000.5 * KIB]
    assert trace.cpu_permille.tolist() == [100] * 20 + [-1] * 5
    assert trace.cpu_capacity_mhz[0] == 5200 and math.isnan(trace.cpu_capacity_mhz[1])
    assert summary.origin_s == T and summary.rows_read == 25 and summary.bad == {}
    assert summary.cleaned == {"timestamp in ms": 5, "CPU capacity of 0 taken as unknown": 1}
    assert content_digest(load_input(source)) == content_digest(trace)


def test_bitbrains_csv_keeps_months_apart_and_takes_one_file(tmp_path: Path) -> None:
    for month in ("2013-7", "2013-8"):
        gwa_file(tmp_path / "rnd" / month / "1.csv", [gwa_row()])
    assert load_input(tmp_path / "rnd").names.tolist() == ["2013-7/1", "2013-8/1"]
    assert load_input(tmp_path / "rnd" / "2013-7" / "1.csv").names.tolist() == ["1"]


def test_bitbrains_csv_off_rows_bound_a_life_or_rest_within_it(tmp_path: Path) -> None:
    on_at = (2, 3, 6)
    rows = [gwa_row(T + 300 * i, capacity=(8 << 20) * (i in on_at)) for i in range(10)]
    gwa_file(tmp_path / "rnd" / "1.csv", rows)
    gwa_file(tmp_path / "rnd" / "2.csv", [gwa_row(capacity=0, cores=0)])
    summary = import_trace("bitbrains-csv", tmp_path / "rnd", tmp_path / "out")
    trace = load_trace(tmp_path / "out")
    assert trace.names.tolist() == ["1"]
    assert (trace.stop_s - trace.start_s).tolist() == [5 * 300]
    assert trace.active_bytes.tolist() == [GIB, GIB, 0, 0, GIB]
    assert trace.cpu_permille.tolist() == [100, 100, 0, 0, 100]
    assert summary.bad == {"VM never on in this trace": 1}
    assert summary.cleaned["reading while off, before or after the VM's life"] == 6
    assert summary.cleaned["reading while off, within the VM's life: uses 0"] == 2
    assert summary.origin_s == T + 600


BAD_ROWS = [
    ("1;2;3", "wrong number of cells"),
    (gwa_row(memory="lots"), "not a number"),
    (gwa_row(memory="nan"), "not a number"),
    (gwa_row(cpu="inf"), "not a number"),
    (gwa_row(cores=""), "not a number"),
    (gwa_row(cores='"2"'), "not a number"),
    (gwa_row(cpu=-1), "negative"),
    (gwa_row(memory="1e99"), "absurdly large"),
    (gwa_row(t=0), "timestamp not from 2000 to 2099"),
    (gwa_row(capacity=536_303_616), "memory capacity above 256 GiB"),
    (gwa_row(cores=0), "no CPU cores"),
]


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS)
def test_bitbrains_csv_counts_each_bad_row_once(tmp_path: Path, row: str, reason: str) -> None:
    raw = read_bitbrains_csv(gwa_file(tmp_path / "1.csv", [gwa_row(), row, gwa_row(T + 300)]))
    assert nonzero(raw.tally.bad) == {reason: 1}
    assert raw.tally.rows == 3 and len(raw.t_s) == 2


def test_a_byte_that_is_no_text_costs_its_row_and_not_the_file(tmp_path: Path) -> None:
    path = gwa_file(tmp_path / "1.csv", [gwa_row(), gwa_row(T + 300)])
    rows = [gwa_row(T + 600, memory="1@"), gwa_row(T + 900)[:20] + "@", gwa_row(T + 1200)]
    with path.open("ab") as file:
        file.write("\n".join([*rows, ""]).encode().replace(b"@", b"\xe9"))
    raw = read_bitbrains_csv(path)
    assert nonzero(raw.tally.bad) == {"not a number": 1, "wrong number of cells": 1}
    assert raw.tally.rows == 5 and raw.t_s.tolist() == [T, T + 300, T + 1200]


def test_an_explicit_format_names_the_file_that_is_wrong(tmp_path: Path) -> None:
    """Though it sorts first, by which the layout is told where no format is given."""
    good = gwa_file(tmp_path / "rnd" / "2.csv", [gwa_row()])
    gwa_file(tmp_path / "rnd" / "1.csv", ["1;2"], "time;load")
    with pytest.raises(TraceError, match=r"rnd/1\.csv: the header must name the column 'timestamp"):
        import_trace("bitbrains-csv", good.parent, tmp_path / "out")
    with pytest.raises(TraceError, match="is no trace: must be"):
        load_input(good.parent)
    assert not (tmp_path / "out").exists()


def test_bitbrains_csv_refuses_files_of_another_kind(tmp_path: Path) -> None:
    good = gwa_file(tmp_path / "rnd" / "1.csv", [gwa_row()])
    other = gwa_file(tmp_path / "rnd" / "2.csv", ["1;2"], "time;load")
    with pytest.raises(TraceError, match=r"2\.csv: the header must name the column 'timestamp"):
        load_input(good.parent)
    other.write_text("")
    with pytest.raises(TraceError, match=r"2\.csv: the header must name"):
        load_input(good.parent)
    gwa_file(other, ["x"])
    good.unlink()
    with pytest.raises(TraceError, match="holds no usable VM; left out: 1 VM never on"):
        load_input(other.parent)


_BLANK = st.sampled_from(["", " ", "\t", " \t "])
_CELL = st.one_of(
    st.integers(0, 9).map(str),
    st.floats(0, 1e6, allow_nan=False).map(lambda value: f"{value:.3f}"),
    st.sampled_from(["", "x", "-3", "nan", "1e3", "1.", ".5", "+1", "1e500", "0x1", "1 2", "٣"]),
)
_STAMP = st.one_of(
    st.integers(T, T + 3000).map(str), st.integers(T, T + 3000).map(lambda t: f"{t}000"), _CELL
)
_GOOD = st.tuples(_STAMP, *[st.integers(0, 9).map(str)] * 6)
_ANY = st.tuples(_STAMP, *[_CELL] * 6)
_SHORT = st.lists(_CELL, min_size=2, max_size=5).map(tuple)


def twin(lines: Sequence[str]) -> tuple[list[tuple[int, int]], Counter[str]]:
    """(second, active bytes) of the good rows while on, and bad rows by reason: the slow way."""
    number = re.compile(r"-?(\d{1,30}(\.\d{0,30})?|\.\d{1,30})([eE][+-]?\d{1,2})?", re.ASCII)
    good, bad = [], Counter[str]()
    for line in lines:
        cells = [cell.strip(" \t") for cell in line.split(";")]
        wanted = [cells[i] for i in (0, 1, 2, 3, 5, 6)] if len(cells) == 7 else []
        if not wanted:
            bad["wrong number of cells"] += 1
            continue
        if not all(number.fullmatch(cell) for cell in wanted):
            bad["not a number"] += 1
            continue
        t, cores, _, _, capacity, memory = values = [float(cell) for cell in wanted]
        t = math.floor(t / 1000 if t >= 1e11 else t)
        if min(values) < 0:
            bad["negative"] += 1
        elif not 946_684_800 <= t < 4_102_444_800:
            bad["timestamp not from 2000 to 2099"] += 1
        elif capacity > 0 and cores < 1:
            bad["no CPU cores"] += 1
        elif capacity > 0:
            good.append((t, round(memory * KIB)))
    return good, bad


@settings(max_examples=150)
@given(st.lists(st.tuples(st.one_of(_GOOD, _ANY, _SHORT), _BLANK), min_size=1, max_size=25))
def test_bitbrains_csv_agrees_with_a_parser_by_cells(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[tuple[str, ...], str]]
) -> None:
    lines = [";".join(blank + cell + blank for cell in cells) for cells, blank in rows]
    header = ";".join(GWA_HEADER.split(";")[:7])
    raw = read_bitbrains_csv(gwa_file(tmp_path_factory.mktemp("csv") / "1.csv", lines, header))
    good, bad = twin(lines)
    bad["VM never on in this trace"] = not good
    assert nonzero(raw.tally.bad) == nonzero(bad)
    assert raw.tally.rows == len(lines)
    # Rows while off within a life are usage of 0: the twin knows only those that are on.
    found = Counter(zip(raw.t_s.tolist(), raw.active_bytes.tolist(), strict=True))
    assert not Counter(good) - found
    assert all(active == 0 for _, active in found - Counter(good))


def bitbrains_parquet(folder: Path, vms: dict[str, Any], week: dict[str, Any]) -> Path:
    folder.mkdir()
    pq.write_table(pa.table(vms), folder / "vms_2013-08.parquet")
    pq.write_table(pa.table(week), folder / "week_2013-08_5min.parquet")
    return folder


def test_bitbrains_parquet_counts_strange_vms_and_readings(tmp_path: Path) -> None:
    vms = {
        "vm": [1, 2, 3, 27, 2, 5],
        "cores": [1, 2, 2, 32, 2, 0],
        "cpu_cap_mhz": [2600.0, 5200.0, 5200.0, 86400.0, 5200.0, 100.0],
        "mem_cap_kb": [1048576.0, 2097152.0, 0.0, 536303616.0, 1.0, 4096.0],
    }
    week = {
        "vm": [1, 1, 1, 2, 2, 3, 27, 99],
        "ts": [T, T + 300, T + 300, T, T + 3000, T, T, T],
        "cpu_mhz": [26, 0, 52, 9999, 0, 1, 1, 1],
        "mem_kb": [1024, 0, 2048, 9999999, 1024, 1, 1, 1],
    }
    source = bitbrains_parquet(tmp_path / "in", vms, week)
    summary = import_trace("bitbrains-parquet", source, tmp_path / "out")
    trace = load_trace(tmp_path / "out")
    assert trace.names.tolist() == ["vm-1", "vm-2"]
    assert trace.stop_s.tolist() == [600, -1]
    assert trace.active_bytes.tolist() == [MIB, 0, 2 * GIB, MIB]
    assert trace.cpu_permille.tolist() == [10, 0, 1000, 0]
    assert summary.rows_read == 14
    assert summary.bad == {
        "VM listed again": 1,
        "VM with a memory capacity above 256 GiB": 1,
        "VM without CPU cores": 1,
        "VM without memory": 1,
        "reading of a VM left out or not listed": 3,
        "reading with the stamp of another": 1,
    }
    assert summary.cleaned["active memory above the VM's size, clipped"] == 1
    assert summary.cleaned["CPU use above capacity, clipped"] == 1
