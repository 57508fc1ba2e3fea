"""Azure readers, and every reader on real data: what is left out or changed is counted.

Synthetic files hold one row per trap; the real ones are read where they lie, or visibly skipped.
"""

from __future__ import annotations

import gzip
import json
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.traces import (
    FORMATS,
    TraceError,
    content_digest,
    import_trace,
    load_input,
    load_trace,
)
from hostsim.units import GIB, MIB

DATA = Path(__file__).parents[2] / "shared" / "data"
AZURE_VMS = [
    "a,s,d,0,2591700,99,3,10,Interactive,1,1.75",
    "b,s,d,600,1200,99,3,10,Unkown,8,56",
    "c,s,d,600,600,99,3,10,Unkown,2,0.75",
    "b,s,d,0,300,99,3,10,Unkown,1,1",
    "d,s,d,600,300,99,3,10,Unkown,1,1",
    "e,s,d,600,900,99,3,10,Unkown,>24,1",
    "f,s,d,600,900,99,3,10,Unkown,1,1e9",
    "g,s,d,600,900,99,3,10,Unkown,0,1",
    "h,s,d",
]
AZURE_CPU = ["0,a,1,9,2.86", "300,a,1,9,120", "600,b,0,1,0.5", "1200,b,1,9,5", "0,z,1,9,5", "0,a,x"]


@pytest.mark.parametrize("zipped", [False, True])
def test_azure_v1_reads_its_tables(tmp_path: Path, zipped: bool) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for name, lines in (("vmtable.csv", AZURE_VMS), ("vm_cpu_readings-1.csv", AZURE_CPU)):
        text = "".join(f"{line}\n" for line in lines).encode()
        path = source / (name + ".gz" * zipped)
        path.write_bytes(gzip.compress(text) if zipped else text)
    summary = import_trace("azure-v1", source, tmp_path / "out")
    trace = load_trace(tmp_path / "out")
    assert trace.names.tolist() == ["a", "b", "c"]
    assert trace.start_s.tolist() == [0, 600, 600]
    assert trace.stop_s.tolist() == [-1, 1200, 750]
    assert trace.memory_bytes.tolist() == [1792 * MIB, 56 * GIB, 768 * MIB]
    assert trace.cpu_permille.tolist() == [29, 1000, 5]
    assert trace.active_bytes.tolist() == [-1, -1, -1]
    assert summary.licence == "CC-BY 4.0" and summary.rows_read == len(AZURE_VMS) + len(AZURE_CPU)
    assert summary.bad == {
        "VM with the name of another": 1,
        "deleted before created": 1,
        "memory above 1 PiB": 1,
        "no CPU cores": 1,
        "not a number": 1,
        "reading of an unknown VM": 1,
        "reading outside the VM's life": 1,
        "wrong number of cells": 2,
    }
    assert summary.cleaned == {
        "CPU use above capacity, clipped": 1,
        "lifetime of 0 s taken as half a step, 150 s": 1,
    }


def test_azure_v1_counts_names_that_are_no_text_and_keeps_the_others(tmp_path: Path) -> None:
    row = b",s,d\xe9,0,1200,99,3,10,Unkown,1,1\n"
    vms = [name + row for name in (b"plain", "w\u00e9b".encode(), b"w\xe9b")]
    (tmp_path / "vmtable.csv").write_bytes(b"".join(vms))
    readings = [name + b",1,9,10\n" for name in (b"0,plain", "0,w\u00e9b".encode(), b"0,w\xe9b")]
    (tmp_path / "vm_cpu_readings-1.csv").write_bytes(b"".join(readings))
    summary = import_trace("azure-v1", tmp_path, tmp_path / "out")
    trace = load_trace(tmp_path / "out")
    assert trace.names.tolist() == ["plain", "w\u00e9b"]
    assert trace.offsets.tolist() == [0, 1, 2]
    assert summary.bad == {"VM name that is not UTF-8": 1, "reading of an unknown VM": 1}


def test_azure_arrivals_leave_out_what_has_no_lifetime(tmp_path: Path) -> None:
    columns = {
        "split": ["train", "dev", "dev", "test"],
        "t": pa.array([300, 1800000, 1800300, 2100000], pa.int32()),
        "censored": [None, False, True, False],
        "vcpus": pa.array([1, 2, 4, 1], pa.int8()),
        "mem_gb": pa.array([1.75, 3.5, 7, 0.75], pa.float32()),
        "dur_min_s": pa.array([None, 3900, 0, 0], pa.int32()),
        "dur_max_s": pa.array([None, 7200, 0, 0], pa.int32()),
    }
    source = tmp_path / "arrivals.parquet"
    pq.write_table(pa.table(columns), source)
    summary = import_trace("azure-v1-arrivals", source, tmp_path / "out")
    trace = load_trace(tmp_path / "out")
    assert trace.names.tolist() == ["dev-1", "dev-2", "test-3"]
    assert trace.start_s.tolist() == [0, 300, 300_000]
    assert trace.stop_s.tolist() == [5550, -1, 300_150]
    assert trace.memory_bytes.tolist() == [3584 * MIB, 7 * GIB, 768 * MIB]
    assert summary.bad == {"no lifetime recorded": 1} and summary.origin_s == 1_800_000
    pq.write_table(pa.table(columns).drop_columns(["censored"]), source)
    with pytest.raises(TraceError, match=r"arrivals\.parquet: lacks the column 'censored'"):
        load_input(source)
    pq.write_table(pa.table(columns | {"vcpus": ["1", "2", "4", "1"]}), source)
    with pytest.raises(TraceError, match="column 'vcpus' is string; must hold numbers"):
        load_input(source)


REAL = {
    "bitbrains-parquet": ("bitbrains-rnd", 492, 983_886),
    "azure-v1": ("opendc-format-samples", 10, 0),
    "azure-v1-arrivals": ("azure-v1-arrivals", 669_435, 0),
}


@pytest.mark.parametrize("name", REAL)
def test_real_data_imports_and_reads_directly(tmp_path: Path, name: str) -> None:
    folder, vms, readings = REAL[name]
    if not (DATA / folder).is_dir():
        pytest.skip(f"needs ../shared/data/{folder}")
    summary = import_trace(name, DATA / folder, tmp_path / "out")
    assert (summary.vms, summary.usage_rows) == (vms, readings)
    trace = load_trace(tmp_path / "out")
    assert content_digest(load_input(DATA / folder)) == content_digest(trace)
    facts = json.loads((tmp_path / "out" / "import.json").read_text())
    assert str(DATA) not in json.dumps(facts)
    if name == "bitbrains-parquet":
        # The archive's README: 7 % active of provisioned over the month, in a week less exact.
        mean = [trace.active_bytes[low:high].mean() for low, high in pairwise(trace.offsets)]
        assert 0.04 < sum(mean) / trace.memory_bytes.sum() < 0.10


def test_formats_say_what_they_look_like() -> None:
    assert list(FORMATS) == ["bitbrains-csv", "bitbrains-parquet", "azure-v1", "azure-v1-arrivals"]
