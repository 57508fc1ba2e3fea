"""Files whole or not at all: written aside, then renamed. Which errors that ends in.

Nothing here knows what a run is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
"""pyarrow's own allocator keeps what it once had: 60 MB more for `scale-1000`, and no faster. It is
imported after this, where it is used: half a second that not every command needs."""
GROUP_ROWS = 16_384
"""Rows of a row group of a table: what joining and reading hold in memory."""


class OutputError(Exception):
    """The run folder cannot be used; the message names the path and says why."""


class WriteError(Exception):
    """Writing failed in a folder that could be used, as on a full disk: no fault of the input."""


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A name to write at; renamed to `path` once whole, so nobody ever reads half a file."""
    beside = path.with_name(f".{path.name}.tmp")
    try:
        yield beside
        os.replace(beside, path)
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        beside.unlink(missing_ok=True)  # gone already unless writing failed


def write_text(path: Path, text: str) -> None:
    """Write `path` whole or not at all."""
    with aside(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `path` whole or not at all, for people and programs."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_table(path: Path, values: Mapping[str, Any]) -> None:
    """Write a Parquet file whole or not at all. A list is text, even where all of it is None."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    typed = {
        name: pa.array(column, pa.string()) if isinstance(column, list) else pa.array(column)
        for name, column in values.items()
    }
    with aside(path) as beside:
        pq.write_table(pa.table(typed), beside, row_group_size=GROUP_ROWS)
