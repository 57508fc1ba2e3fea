"""What is the same for all formats: sorting, clipping, leaving out, and counting all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.trace_readers import Raw, Tally
from cluster.traces import (
    TraceError,
    arrange,
    content_digest,
    import_trace,
    load_input,
    load_trace,
    save_trace,
)
from hostsim.units import GIB


def a_raw(vms: list[tuple[str, int, int]], readings: list[tuple[int, int, int, int]]) -> Raw:
    """VMs of 1 GiB as (name, start, stop), readings as (VM, stamp, active, CPU)."""
    of_vm = np.array([vm[1:] for vm in vms], np.int64).reshape(-1, 2)
    usage = np.array(readings, np.int64).reshape(-1, 4).T
    size = np.full(len(vms), GIB)
    names = [name for name, _, _ in vms]
    mhz = np.full(len(vms), np.nan)
    start, stop = of_vm.T
    tally = Tally(rows=len(readings))
    return Raw(names, start, stop, size * 0 + 1, size, mhz, *usage, tally, (), "", None)


def test_arranging_counts_all_that_it_leaves_out_or_changes(tmp_path: Path) -> None:
    vms = [("b", 1000, -1), ("a", 1300, 1900), ("b", 1000, -1), ("bad\n", 0, -1)]
    readings = [
        (0, 1300, 5, 5),
        (0, 1000, 2 * GIB, 1500),
        (0, 1300, 9, 9),
        (1, 1900, 1, 1),
        (1, 1000, 1, 1),
        (1, 1600, -1, 7),
        (2, 1000, 1, 1),
    ]
    raw = a_raw(vms, readings)
    trace, origin_s = arrange(raw, tmp_path)
    assert origin_s == 1000
    assert trace.names.tolist() == ["a", "b"]
    assert trace.start_s.tolist() == [300, 0]
    assert trace.stop_s.tolist() == [900, -1]
    assert trace.offsets.tolist() == [0, 1, 3]
    assert trace.t_s.tolist() == [600, 0, 300]
    assert trace.active_bytes.tolist() == [-1, GIB, 5]
    assert trace.cpu_permille.tolist() == [7, 1000, 5]
    assert {reason: n for reason, n in raw.tally.bad.items() if n} == {
        "VM with an unusable name": 1,
        "VM with the name of another": 1,
        "reading of a VM left out": 1,
        "reading with the stamp of another": 1,
        "reading outside the VM's life": 2,
    }
    assert {reason: n for reason, n in raw.tally.cleaned.items() if n} == {
        "active memory above the VM's size, clipped": 1,
        "CPU use above capacity, clipped": 1,
    }


_VM = st.tuples(st.text("abé", min_size=1, max_size=2), st.integers(0, 9), st.integers(1, 9))
_READING = st.tuples(
    st.integers(0, 3), st.integers(-2, 20), st.integers(-1, 2 * GIB), st.integers(-1, 1200)
)


@settings(max_examples=60)
@given(st.lists(_VM, min_size=4, max_size=8), st.lists(_READING, max_size=30))
def test_whatever_is_arranged_can_be_stored_and_loaded(
    tmp_path_factory: pytest.TempPathFactory, vms: Any, readings: Any
) -> None:
    raw = a_raw([(name, start, start + life) for name, start, life in vms], readings)
    folder = tmp_path_factory.mktemp("any") / "trace"
    trace, _ = arrange(raw, folder)
    save_trace(trace, folder, {})
    assert content_digest(load_trace(folder)) == content_digest(trace)
    assert len(trace.names) + raw.tally.bad["VM with the name of another"] == len(vms)
    left_out = sum(n for reason, n in raw.tally.bad.items() if reason.startswith("reading"))
    assert len(trace.t_s) + left_out == len(readings)


@pytest.mark.parametrize("make", ["nothing", "folder", "text"])
def test_what_is_no_trace_is_refused_with_what_would_be(tmp_path: Path, make: str) -> None:
    path = tmp_path / "input"
    if make == "folder":
        path.mkdir()
    elif make == "text":
        path.write_text("hello")
    expected = "does not exist" if make == "nothing" else "is no trace: must be .*azure-v1-arrivals"
    with pytest.raises(TraceError, match=expected):
        load_input(path)
    with pytest.raises(TraceError, match=r"does not exist|does not look like"):
        import_trace("azure-v1", path, tmp_path / "out")
    with pytest.raises(TraceError, match="unknown format 'csv'; must be one of bitbrains-csv"):
        import_trace("csv", path, tmp_path / "out")
