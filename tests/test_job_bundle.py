"""Results come back whole and inside their folder, or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import ClusterError, RefusedError
from cluster.files import OutputError
from cluster.jobs import bundle
from cluster.jobs.bundle import Bundle

FILES = {
    "manifest.json": json.dumps({"esxsim": "0"}).encode(),
    "report.json": b"{}" * 1000,
    "points/a/vms.parquet": os.fsencode("parts"),
}


def run_folder(at: Path, files: dict[str, bytes] = FILES) -> Path:
    for name, content in files.items():
        (at / name).parent.mkdir(parents=True, exist_ok=True)
        (at / name).write_bytes(content)
    return at


def held(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def tar_of(members: list[tuple[tarfile.TarInfo, bytes]], target: Path) -> Bundle:
    """A bundle as a head could send it that is not what it was."""
    with tarfile.open(target, "w:gz") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    total = sum(len(content) for _, content in members)
    sha256 = hashlib.sha256(target.read_bytes()).hexdigest()
    return Bundle(target.name, target.stat().st_size, sha256, total)


def nothing_is_left_aside(folder: Path) -> bool:
    return not [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_a_folder_comes_back_as_it_was(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "there")
    (folder / "link").symlink_to("/etc/passwd")
    run_folder(folder, {"checkpoints/7/state": b"large", "deep/checkpoints/x": b"kept"})
    told = bundle.pack(folder, tmp_path / "packed.tar.gz")
    bundle.unpack(tmp_path / "packed.tar.gz", told, tmp_path / "out" / "here")
    assert held(tmp_path / "out" / "here") == FILES | {"deep/checkpoints/x": b"kept"}
    assert nothing_is_left_aside(tmp_path / "out")


def test_a_former_run_is_replaced_and_a_foreign_folder_is_not(tmp_path: Path) -> None:
    told = bundle.pack(run_folder(tmp_path / "there"), tmp_path / "packed")
    former = run_folder(tmp_path / "here", FILES | {"old.parquet": b"old"})
    bundle.unpack(tmp_path / "packed", told, former)
    assert held(former) == FILES
    foreign = run_folder(tmp_path / "foreign", {"thesis.txt": b"mine"})
    with pytest.raises(OutputError, match="not a run folder"):
        bundle.unpack(tmp_path / "packed", told, foreign)
    assert held(foreign) == {"thesis.txt": b"mine"}
    study = run_folder(tmp_path / "study", {"study.json": b'{"study": 1}'})
    bundle.unpack(tmp_path / "packed", told, study)
    assert held(study) == FILES
    assert nothing_is_left_aside(tmp_path)


@pytest.mark.parametrize("size", [10, 60, -1])
def test_what_is_damaged_is_refused_and_the_former_run_stays(tmp_path: Path, size: int) -> None:
    packed = tmp_path / "packed"
    told = bundle.pack(run_folder(tmp_path / "there"), packed)
    content = packed.read_bytes()
    packed.write_bytes(content[:size] if size > 0 else content[:-9] + b"x" + content[-8:])
    former = run_folder(tmp_path / "here")
    with pytest.raises(ClusterError, match="damaged on their way"):
        bundle.unpack(packed, told, former)
    if size < 0:
        return
    # Even where the head says so itself.
    lied = replace(
        told, size=packed.stat().st_size, sha256=hashlib.sha256(packed.read_bytes()).hexdigest()
    )
    with pytest.raises(ClusterError, match="cannot be unpacked"):
        bundle.unpack(packed, lied, former)
    assert held(former) == FILES and nothing_is_left_aside(tmp_path)


def test_no_more_is_unpacked_than_was_told(tmp_path: Path) -> None:
    told = bundle.pack(run_folder(tmp_path / "there", {"zeros": b"\0" * 100_000}), tmp_path / "p")
    with pytest.raises(RefusedError, match="'zeros'"):
        bundle.unpack(tmp_path / "p", replace(told, unpacked=99_999), tmp_path / "here")
    assert not (tmp_path / "here").exists()


KINDS = {
    "link": tarfile.SYMTYPE,
    "hard link": tarfile.LNKTYPE,
    "device": tarfile.CHRTYPE,
    "pipe": tarfile.FIFOTYPE,
    "folder": tarfile.DIRTYPE,
}


@pytest.mark.parametrize("kind", KINDS)
def test_only_files_are_unpacked(tmp_path: Path, kind: str) -> None:
    member = tarfile.TarInfo("odd")
    member.type, member.linkname = KINDS[kind], "/etc/passwd"
    told = tar_of([(member, b"")], tmp_path / "p")
    with pytest.raises(RefusedError, match="hold what does not belong there: 'odd'"):
        bundle.unpack(tmp_path / "p", told, tmp_path / "here")
    assert not (tmp_path / "here").exists()


_PIECES = st.sampled_from(["..", ".", "", "a", "b", "points", "etc", "\x1b[2J", "ü"])


@given(st.lists(_PIECES, min_size=1, max_size=5).map("/".join))
def test_no_member_leaves_its_folder(name: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        top = Path(scratch) / "top"
        top.mkdir()
        told = tar_of([(tarfile.TarInfo(name), b"x")], top / "p")
        try:
            bundle.unpack(top / "p", told, top / "here")
        except (RefusedError, ClusterError):
            assert not (top / "here").exists()
        else:
            assert list(held(top / "here").values()) == [b"x"]
        beside = [path for path in Path(scratch).rglob("*") if path.is_file()]
        assert [path for path in beside if not path.is_relative_to(top / "here")] == [top / "p"]
