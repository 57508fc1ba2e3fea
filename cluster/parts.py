"""A table in parts: which files hold it, how they become one, and how far a resumed run keeps it.

Joining cuts fixed row groups, so the joined bytes do not depend on how the rows were batched.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.files import GROUP_ROWS, OutputError, aside

PARTS = ".parts"


def part(folder: Path, table: str, number: int) -> Path:
    """The file of a part."""
    return folder / PARTS / f"{table}-{number:06d}.parquet"


def parts_of(folder: Path, table: str) -> list[Path]:
    """The parts of a table that there are, in row order."""
    return sorted((folder / PARTS).glob(f"{table}-*.parquet"))


def table_files(folder: Path, table: str) -> list[Path]:
    """The files that hold a table, in row order: the joined one, else the parts so far."""
    joined = folder / f"{table}.parquet"
    return [joined] if joined.exists() else parts_of(folder, table)


def join(folder: Path, table: str) -> None:
    """Parts -> one file, holding at most a row group and a part in memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts = parts_of(folder, table)
    if not parts:  # joined before
        return
    schema = pq.read_schema(parts[0])
    held = schema.empty_table()
    with aside(folder / f"{table}.parquet") as beside, pq.ParquetWriter(beside, schema) as writer:
        for one in parts:
            held = pa.concat_tables([held, pq.ParquetFile(one).read(use_threads=False)])
            while len(held) >= GROUP_ROWS:
                writer.write_table(held.slice(0, GROUP_ROWS).combine_chunks())
                held = held.slice(GROUP_ROWS)
        if len(held):
            writer.write_table(held.combine_chunks())


def rows_of(folder: Path, table: str) -> int:
    """How many rows a table has so far. Raises OutputError for a file that is no table."""
    return sum(_file(path).metadata.num_rows for path in table_files(folder, table))


def keep_first(folder: Path, table: str, n_rows: int) -> int:
    """Leave the first `n_rows` of a table, in parts. Returns how many parts.

    Killed midway it can be done again. Raises OutputError where there are fewer rows.
    """
    there_are = rows_of(folder, table)
    if there_are < n_rows:
        raise OutputError(f"{folder}: table {table} has {there_are} rows, {n_rows} were written")
    kept = left = 0
    for path in table_files(folder, table):
        n = min(_file(path).metadata.num_rows, n_rows - left)
        if n > 0:
            _cut(path, part(folder, table, kept), n)
            kept, left = kept + 1, left + n
    for path in reversed(parts_of(folder, table)[kept:]):
        path.unlink()
    (folder / f"{table}.parquet").unlink(missing_ok=True)
    return kept


def _cut(path: Path, to: Path, n_rows: int) -> None:
    """The first rows of a file as a part; a part that stays as it is is not written again."""
    import pyarrow.parquet as pq

    with _file(path) as file:
        if path == to and file.metadata.num_rows == n_rows:
            return
        with aside(to) as beside, pq.ParquetWriter(beside, file.schema_arrow) as writer:
            for batch in file.iter_batches(batch_size=GROUP_ROWS):
                writer.write_batch(batch.slice(0, n_rows))
                n_rows -= min(len(batch), n_rows)
                if n_rows == 0:
                    break


def _file(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise OutputError(f"cannot read {path}: {error}") from error
