"""Files of page hashes: what is read of them, and the one message for what is wrong with them."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hash_files import guest_arrays, write_npz, write_parquet, write_series
from hypothesis import given, settings
from hypothesis import strategies as some

from cluster import hash_counts, page_hashes
from cluster.page_hashes import HashesError, content_digest, read


def test_numbered_guests_are_read_in_order(tmp_path: Path) -> None:
    found = read(tmp_path / write_npz(tmp_path, n=3))
    assert [guest.name for guest in found.guests] == ["01", "02", "03"]
    assert found.kind == page_hashes.XXH3_64 and found.knows_touched
    guest = found.guests[1]
    assert guest.hashes.tolist() == [[9, 7, 0, 5, 5, 0, 0, 7]]
    assert guest.touched.tolist() == [True, True, False, True, True, False, True, True]
    assert guest.others.tolist() == [0, 102]


def test_guests_without_others_have_none(tmp_path: Path) -> None:
    found = read(tmp_path / write_npz(tmp_path, n=1, o01=None))
    assert len(found.guests[0].others) == 0


def test_a_series_has_a_row_a_dump_and_all_pages_touched(tmp_path: Path) -> None:
    found = read(tmp_path / write_series(tmp_path))
    assert [guest.name for guest in found.guests] == ["web", "idle"]
    assert found.guests[0].hashes.shape == (3, 8) and found.guests[0].touched.all()
    assert [guest.referenced.tolist() for guest in found.guests] == [[8, 5, 3], [8, 0, 1]]
    assert not found.knows_touched


def test_one_guest_by_its_name(tmp_path: Path) -> None:
    (guest,) = read(tmp_path / write_series(tmp_path), guest="idle").guests
    assert guest.name == "idle" and guest.referenced.tolist() == [8, 0, 1]
    assert [g.name for g in read(tmp_path / write_npz(tmp_path), guest="02").guests] == ["02"]


def test_vms_of_a_snapshot_by_number_with_zero_as_the_zero_page(tmp_path: Path) -> None:
    """What hashes to 0 without being the zero page takes the zero page's own hash instead."""
    path = tmp_path / write_parquet(tmp_path)
    found = read(path, trace="a", snapshot=0)
    assert [guest.name for guest in found.guests] == ["1", "2"]
    assert [guest.hashes[0].tolist() for guest in found.guests] == [[7, 8, 0, 0], [0, 7, 7]]
    assert found.kind == page_hashes.SUPER_FAST_HASH_32
    (later,) = read(path, trace="a", snapshot=1).guests
    assert later.hashes[0].tolist() == [page_hashes.ZERO_PAGE_32, 1]


def test_equal_contents_have_one_digest_however_they_are_stored(tmp_path: Path) -> None:
    write_npz(tmp_path, "one.npz")
    arrays = guest_arrays(2) | guest_arrays(1)
    np.savez(tmp_path / "two.npz", **arrays)
    one, two = (content_digest(read(tmp_path / name)) for name in ("one.npz", "two.npz"))
    assert one == two
    hashes = np.array([9, 7, 0, 5, 5, 0, 0, 8], np.uint64)
    assert content_digest(read(tmp_path / write_npz(tmp_path, h02=hashes))) != one
    assert content_digest(read(tmp_path / write_npz(tmp_path, o01=None))) != one


def ints(*values: int, dtype: Any = np.uint64) -> Any:
    return np.array(values, dtype)


WRONG_NPZ: dict[str, tuple[dict[str, Any], str]] = {
    "no guest": ({"h01": None, "h02": None}, "holds no guest"),
    "no touched": ({"p02": None}, "has no array p02"),
    "no classes": ({"c01": None}, "has no array c01"),
    "signed hashes": ({"h01": ints(*range(8), dtype=np.int64)}, "h01 is int64 of 1 dim"),
    "hashes in a table": ({"h01": np.zeros((2, 4), np.uint64)}, "h01 is uint64 of 2 dim"),
    "few classes": ({"c01": ints(1, dtype=np.uint8)}, "c01 has 1 pages, its guest 8"),
    "a strange class": ({"c01": np.full(8, 9, np.uint8)}, "c01 has class 9; must be 0 to 7"),
    "few touched": ({"p01": ints(dtype=np.uint8)}, "p01 has 0 bytes, for 8 pages"),
    "a content untouched": ({"p01": ints(1, dtype=np.uint8)}, "p01 says was never touched"),
    "nothing touched": (
        {"h01": np.zeros(8, np.uint64), "p01": ints(0, dtype=np.uint8)},
        "guest 01 must have pages that were touched",
    ),
    "others of text": ({"o01": np.array(["a"])}, "o01 is <U1 of 1 dim"),
    "objects": ({"h01": np.array([{}], dtype=object)}, "is no readable .npz file: Object arrays"),
}


@pytest.mark.parametrize("case", WRONG_NPZ)
def test_wrong_fingerprints_are_refused(case: str, tmp_path: Path) -> None:
    arrays, message = WRONG_NPZ[case]
    with pytest.raises(HashesError, match=message):
        read(tmp_path / write_npz(tmp_path, **arrays))


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "sprung"),)

    write_npz(tmp_path, h01=np.array([Trap()], dtype=object))
    (tmp_path / "plain.npz").write_bytes(pickle.dumps(Trap()))
    for name in ("real.npz", "plain.npz"):
        with pytest.raises(HashesError, match="no readable"):
            read(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


WRONG_SERIES: dict[str, tuple[dict[str, Any], str]] = {
    "columns": ({"referenced_pages": np.zeros((3, 3), np.int64)}, "has 3 columns, not 2"),
    "dumps": ({"h_web": np.zeros((2, 8), np.uint64)}, "h_web has 2 dumps, referenced_pages 3"),
    "too many": ({"referenced_pages": np.full((3, 2), 9)}, "of web must be from 0 to 8"),
    "negative": ({"referenced_pages": np.full((3, 2), -1)}, "of web must be from 0 to 8"),
    "no classes": ({"c_idle": None}, "has no array c_idle"),
}


@pytest.mark.parametrize("case", WRONG_SERIES)
def test_wrong_series_are_refused(case: str, tmp_path: Path) -> None:
    arrays, message = WRONG_SERIES[case]
    with pytest.raises(HashesError, match=message):
        read(tmp_path / write_series(tmp_path, **arrays))


WRONG_PARQUET: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no choice": ({}, {}, "needs trace and snapshot; it has 'a' 0, 'a' 1"),
    "no snapshot": ({}, {"trace": "a"}, "needs trace and snapshot"),
    "not there": ({}, {"trace": "b", "snapshot": 0}, "has no such snapshot; it has 'a' 0"),
    "a column": ({"vm": None}, {"trace": "a", "snapshot": 0}, "has no column vm"),
    "twice": ({"vm": [1, 1, 1]}, {"trace": "a", "snapshot": 0}, "one VM twice"),
    "numbers": ({"hashes": [1, 2, 3]}, {"trace": "a", "snapshot": 0}, "must be lists of uint32"),
    "wide": ({"hashes": [[1], [2], [3]]}, {"trace": "a", "snapshot": 0}, "lists of uint32"),
    "null": (
        {"hashes": pa.array([[None], [1], None], pa.list_(pa.uint32()))},
        {"trace": "a", "snapshot": 0},
        "guest 2 has no hashes, or null",
    ),
    "empty": (
        {"hashes": pa.array([[], [1], [1]], pa.list_(pa.uint32()))},
        {"trace": "a", "snapshot": 0},
        "guest 2 must have pages",
    ),
    "a null vm": ({"vm": [None, 1, 1]}, {"trace": "a", "snapshot": 0}, "no readable Parquet"),
}


@pytest.mark.parametrize("case", WRONG_PARQUET)
def test_wrong_snapshots_are_refused(case: str, tmp_path: Path) -> None:
    columns, choice, message = WRONG_PARQUET[case]
    with pytest.raises(HashesError, match=message):
        read(tmp_path / write_parquet(tmp_path, **columns), **choice)


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "text.npz").write_text("not a zip")
    (tmp_path / "text.parquet").write_text("not Parquet")
    (tmp_path / "hashes.csv").write_text("1")
    for name, message in {
        "none.npz": "does not exist",
        "folder.npz": "is no file",
        "text.npz": "is no readable .npz file",
        "text.parquet": "is no readable Parquet file",
        "hashes.csv": "must be a .npz or a .parquet file",
    }.items():
        with pytest.raises(HashesError, match=message):
            read(tmp_path / name)
    with pytest.raises(HashesError, match="has no guest 'web'; it has 01, 02"):
        read(tmp_path / write_npz(tmp_path), guest="web")
    with pytest.raises(HashesError, match="has neither traces nor snapshots"):
        read(tmp_path / write_npz(tmp_path), snapshot=0)


def test_files_that_unpack_to_too_much_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / write_npz(tmp_path)
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    monkeypatch.setattr(page_hashes, "BYTES_MAX", size - 1)
    with pytest.raises(HashesError, match="far too large"):
        read(path)


@settings(max_examples=60)
@given(some.data())
def test_a_damaged_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: some.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    writers = {"npz": write_npz, "parquet": write_parquet}
    kind = data.draw(some.sampled_from(sorted(writers)))
    path = folder / writers[kind](folder)
    content = bytearray(path.read_bytes())
    for place in data.draw(some.lists(some.integers(0, len(content) - 1), min_size=1, max_size=5)):
        content[place] = data.draw(some.integers(0, 255))
    cut = data.draw(some.none() | some.integers(0, len(content)))
    path.write_bytes(content[:cut])
    choice: dict[str, Any] = {"trace": "a", "snapshot": 0} if kind == "parquet" else {}
    try:
        read(path, **choice)
    except HashesError as error:
        assert str(error).isprintable()


def naive_saved(guests: list[list[int]], visited: list[list[bool]]) -> tuple[int, int]:
    """Zero and other pages saved among those visited, one at a time."""
    seen: set[int] = set()
    zero = nonzero = 0
    for guest, marks in zip(guests, visited, strict=True):
        for page, is_visited in zip(guest, marks, strict=True):
            if is_visited and page in seen:
                zero, nonzero = zero + (page == 0), nonzero + (page != 0)
            elif is_visited:
                seen.add(page)
    return zero, nonzero


@given(some.lists(some.lists(some.integers(0, 5), max_size=30), max_size=4))
def test_saved_pages_are_all_copies_but_one(guests: list[list[int]]) -> None:
    every = [[True] * len(guest) for guest in guests]
    arrays = [np.array(guest, np.uint64) for guest in guests]
    assert hash_counts.saved(arrays) == naive_saved(guests, every)


def test_the_expectation_is_the_mean_over_which_pages_were_visited() -> None:
    """4000 draws of 60 pages at c = 0.4; tolerance 4 standard errors; derived."""
    rng = np.random.default_rng(3)
    guests = [rng.integers(0, 12, 30).astype(np.uint64) for _ in range(2)]
    plain = [guest.tolist() for guest in guests]
    draws = np.array([naive_saved(plain, rng.random((2, 30)) < 0.4) for _ in range(4000)])
    expected = hash_counts.expected_at(guests, 0.4)
    error = np.abs(draws.mean(axis=0) - expected) / (draws.std(axis=0) / np.sqrt(4000))
    assert error.max() < 4


def test_the_expectation_is_nothing_at_first_and_everything_at_last() -> None:
    guests = [np.array([0, 0, 3, 3, 4], np.uint64)]
    assert hash_counts.expected_at(guests, 0.0) == (0, 0)
    assert hash_counts.expected_at(guests, 1.0) == hash_counts.saved(guests) == (1, 1)
    assert hash_counts.saved([]) == (0, 0)
