"""A table in parts: cut to its first rows, wherever that falls and however often it is cut off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.files import OutputError, write_table
from cluster.parts import PARTS, join, keep_first, part, rows_of, table_files

SIZES = (5, 1, 7)


def table(folder: Path) -> None:
    (folder / PARTS).mkdir()
    at = 0
    for number, size in enumerate(SIZES):
        write_table(part(folder, "x", number), {"row": np.arange(at, at + size)})
        at += size


def rows(folder: Path) -> list[int]:
    found: list[int] = []
    for path in table_files(folder, "x"):
        found += pq.read_table(path)["row"].to_pylist()
    return found


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("n_rows", range(sum(SIZES) + 1))
def test_the_first_rows_are_kept(tmp_path: Path, n_rows: int, joined: bool) -> None:
    table(tmp_path)
    if joined:
        join(tmp_path, "x")
    n_parts = keep_first(tmp_path, "x", n_rows)
    assert rows(tmp_path) == list(range(n_rows))
    assert len(table_files(tmp_path, "x")) == n_parts
    write_table(part(tmp_path, "x", n_parts), {"row": np.arange(n_rows, 20)})
    join(tmp_path, "x")
    assert rows(tmp_path) == list(range(20))


def test_more_rows_than_there_are_cannot_be_kept(tmp_path: Path) -> None:
    table(tmp_path)
    with pytest.raises(OutputError, match="table x has 13 rows, 14 were written"):
        keep_first(tmp_path, "x", 14)
    assert rows(tmp_path) == list(range(13))


def test_a_file_that_is_no_table_is_told(tmp_path: Path) -> None:
    table(tmp_path)
    part(tmp_path, "x", 1).write_bytes(b"PAR1")
    with pytest.raises(OutputError, match=r"cannot read .*x-000001"):
        rows_of(tmp_path, "x")
