"""Files of page hashes for tests: a few guests of a few pages, in each layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.page_hashes import ZERO_PAGE_32

PAGES = 8


def guest_arrays(number: int, **changes: Any) -> dict[str, Any]:
    """A guest of eight pages, two of them untouched, in the numbered layout; it has two others.

    By address: kernel 9, free 7, untouched, anonymous 5, cache 5, untouched, unknown 0, shared 7.
    """
    values = {
        "h": np.array([9, 7, 0, 5, 5, 0, 0, 7], np.uint64),
        "p": np.packbits([1, 1, 0, 1, 1, 0, 1, 1]),
        "c": np.array([5, 0, 0, 1, 3, 0, 255, 7], np.uint8),
        "o": np.array([0, 100 + number], np.uint64),
    } | changes
    return {f"{key}{number:02d}": value for key, value in values.items() if value is not None}


def write_npz(folder: Path, name: str = "real.npz", n: int = 2, **arrays: Any) -> str:
    """Numbered guests; `arrays` replace some or, with None, leave them out."""
    found: dict[str, Any] = {"meta": np.array('{"exp": "test"}')}
    for number in range(1, n + 1):
        found |= guest_arrays(number)
    found |= arrays
    np.savez_compressed(folder / name, **{k: v for k, v in found.items() if v is not None})
    return name


def series_arrays() -> dict[str, Any]:
    """Two guests of eight pages and three dumps, 2 and 0 pages changing at first."""
    web = np.array(
        [[1, 2, 3, 0, 0, 4, 4, 5], [1, 9, 3, 0, 0, 4, 4, 0], [1, 9, 3, 0, 0, 4, 4, 0]], np.uint64
    )
    classes = np.array([4, 5, 1, 2, 3, 0, 7, 1], np.uint8)
    return {
        "h_web": web,
        "c_web": classes,
        "h_idle": np.zeros((3, 8), np.uint64),
        "c_idle": np.full(8, 255, np.uint8),
        "t": np.zeros((3, 2)),
        "referenced_pages": np.array([[8, 8], [5, 0], [3, 1]]),
    }


def write_series(folder: Path, name: str = "series.npz", **changes: Any) -> str:
    arrays = series_arrays() | changes
    np.savez_compressed(folder / name, **{k: v for k, v in arrays.items() if v is not None})
    return name


def write_parquet(folder: Path, name: str = "real.parquet", **columns: Any) -> str:
    """Trace a: VMs 2 and 1 in snapshot 0, VM 1 in snapshot 1."""
    hashes = [[ZERO_PAGE_32, 7, 7], [7, 8, ZERO_PAGE_32, ZERO_PAGE_32], [0, 1]]
    values = {
        "trace": ["a", "a", "a"],
        "vm": pa.array([2, 1, 1], pa.int8()),
        "snapshot": pa.array([0, 0, 1], pa.int8()),
        "hashes": pa.array(hashes, pa.list_(pa.uint32())),
    } | columns
    kept = {key: value for key, value in values.items() if value is not None}
    pq.write_table(pa.table(kept), folder / name)
    return name
