"""A job takes to the cluster what its scenario names, where no import finds it; nothing else."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hash_files import write_npz
from hypothesis import given
from hypothesis import strategies as st
from scenario_files import SMALL, STEADY, changed, make_trace, save, trace_of, write

from cluster.errors import RefusedError, exit_code
from cluster.jobs import upload
from cluster.jobs.upload import DATA, INPUT
from cluster.scenario_file import ScenarioError, load
from cluster.studies.sweep_file import load_sweep
from cluster.traces import TraceError

SECRET = b"nobody else's business"
TRACE = trace_of(workloads=STEADY)
OUTAGES = "at_s,host,repair_s\n600,esx-1,600\n"


def packed(path: Path, data_root: Path, target: Path) -> Path:
    """The folder that a job of this scenario has on the head."""
    package = target / "job.zip"
    size = upload.pack(upload.check(path, data_root, None), data_root, package)
    assert size == package.stat().st_size
    with zipfile.ZipFile(package) as archive:
        assert archive.testzip() is None
        archive.extractall(target / "job")
    return target / "job"


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A scenario's folder with files that a scenario may name, and a secret beside it."""
    folder = tmp_path / "mine"
    folder.mkdir()
    save(folder, make_trace())
    (folder / "trace" / "notes.txt").write_bytes(SECRET)
    (folder / "other.yaml").write_bytes(SECRET)
    (folder / "outages.csv").write_text(OUTAGES)
    write(folder, {"images": SMALL["images"]}, "numpy.py")
    (tmp_path / "secret").write_bytes(SECRET)
    return folder


def test_a_scenario_and_all_that_it_names_are_the_same_there(place: Path, tmp_path: Path) -> None:
    values = changed(images="numpy.py", trace=TRACE, availability={"trace": "outages.csv"})
    path = write(place, values, "my scenario.yaml")
    there = packed(path, tmp_path / "no data", tmp_path)
    assert names(there) == [
        f"{INPUT}/my scenario.yaml",
        f"{INPUT}/numpy.py",
        f"{INPUT}/outages.csv",
        f"{INPUT}/trace/usage.parquet",
        f"{INPUT}/trace/vms.parquet",
    ]
    found = load(there / INPUT / path.name, data_root=there / DATA)
    given = load(path)
    assert (found.digest, found.assumptions) == (given.digest, given.assumptions)
    assert found.scenario_yaml == given.scenario_yaml


def test_data_lies_in_a_folder_of_its_own(place: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "real").mkdir(parents=True)
    (data / "unnamed").mkdir()
    (data / "unnamed" / "vms.parquet").write_bytes(SECRET)
    hashes = {"data": "real", "hashes": write_npz(data / "real")}
    save(data, make_trace(), "azure")
    images = [*SMALL["images"], {"name": "real", "content": hashes}]
    trace = {"data": "azure", "images": {"linux": 1}, "workloads": STEADY}
    vms = [SMALL["vms"][0], {"name": "replayed", "count": 2, "memory": "1 GiB", "image": "real"}]
    path = write(place, changed(images=images, trace=trace, vms=vms))
    there = packed(path, data, tmp_path)
    assert names(there) == [
        f"{DATA}/azure/usage.parquet",
        f"{DATA}/azure/vms.parquet",
        f"{DATA}/real/real.npz",
        f"{INPUT}/scenario.yaml",
    ]
    found = load(there / INPUT / path.name, data_root=there / DATA)
    assert found.digest == load(path, data_root=data).digest


def test_a_sweep_takes_what_any_of_its_points_names(place: Path, tmp_path: Path) -> None:
    save(place, make_trace(), "later")
    sweep = {"vary": {"trace.path": ["trace", "later"]}}
    path = write(place, changed(trace=TRACE) | {"sweep": sweep})
    there = packed(path, tmp_path, tmp_path)
    kept = [name for name in names(there) if name.endswith("vms.parquet")]
    assert kept == [f"{INPUT}/later/vms.parquet", f"{INPUT}/trace/vms.parquet"]
    found = load_sweep(there / INPUT / path.name, data_root=there / DATA)
    assert found.digests == load_sweep(path, data_root=None).digests


def test_no_import_finds_a_file_of_a_job(place: Path, tmp_path: Path) -> None:
    there = packed(write(place, changed(images="numpy.py")), tmp_path, tmp_path)
    # What Ray puts on the search path is the folder itself.
    assert all(not path.name.isidentifier() for path in there.iterdir())
    assert not any(path.is_file() for path in there.iterdir())


def test_equal_input_is_an_equal_package(place: Path, tmp_path: Path) -> None:
    checked = upload.check(write(place, changed(trace=TRACE)), tmp_path, None)
    for name in ("a.zip", "b.zip"):
        upload.pack(checked, tmp_path, tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_what_is_too_large_for_ray_is_refused_with_its_size(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "outages.csv").write_text(OUTAGES + "900,esx-2,600\n" * 10_000)
    path = write(place, changed(availability={"trace": "outages.csv"}))
    monkeypatch.setattr(upload, "UPLOAD_MAX_BYTES", 100)
    with pytest.raises(
        RefusedError, match=r"are 0 MiB packed \(most of it outages.csv\)"
    ) as caught:
        packed(path, tmp_path, tmp_path)
    assert exit_code(caught.value) == 2


BAD = ["../secret", "/etc/passwd", "../../etc/passwd", "trace/../../secret", "link", "links", ""]


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("key", ["images", "trace", "hashes", "availability", "sweep"])
def test_a_name_that_leads_out_is_refused(place: Path, tmp_path: Path, name: str, key: str) -> None:
    (place / "link").symlink_to(tmp_path / "secret")
    (place / "links").mkdir()
    (place / "links" / "vms.parquet").symlink_to(tmp_path / "secret")
    with pytest.raises(ScenarioError, match=r"must be the name of a file|must not lead out"):
        packed(write(place, naming(key, name)), tmp_path, tmp_path)
    assert not (tmp_path / "job.zip").exists()


def naming(key: str, name: str) -> dict[str, Any]:
    """A scenario that names something in this place."""
    values: dict[str, dict[str, Any]] = {
        "images": {"images": name},
        "trace": {"trace": TRACE | {"path": name}},
        "data": {"trace": {"data": name, "images": {"linux": 1}, "workloads": STEADY}},
        "hashes": {"images": [{"name": "linux", "content": {"hashes": name}}]},
        "availability": {"availability": {"trace": name}},
        "sweep": {"trace": TRACE, "sweep": {"vary": {"trace.path": ["trace", name]}}},
    }
    return changed(**values[key])


_PIECES = [
    "..",
    ".",
    "",
    "trace",
    "link",
    "secret",
    "numpy.py",
    "outages.csv",
    "~",
    "\0",
    "é",
    "a b",
]
_NAMES = st.one_of(
    st.lists(st.sampled_from(_PIECES), max_size=4).map("/".join), st.text(max_size=12)
)


@given(
    key=st.sampled_from(["images", "trace", "data", "hashes", "availability", "sweep"]), name=_NAMES
)
def test_whatever_a_scenario_names_nothing_of_others_is_packed(key: str, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        mine = top / "mine"
        mine.mkdir()
        save(mine, make_trace())
        (mine / "trace" / "notes.txt").write_bytes(SECRET)
        (mine / "outages.csv").write_text(OUTAGES)
        write(mine, {"images": SMALL["images"]}, "numpy.py")
        (top / "secret").write_bytes(SECRET)
        (mine / "link").symlink_to(top / "secret")
        path = write(mine, naming(key, name))
        try:
            checked = upload.check(path, top / "data", None)
        except (ScenarioError, TraceError):
            return
        upload.pack(checked, top / "data", top / "job.zip")
        with zipfile.ZipFile(top / "job.zip") as archive:
            for member in archive.namelist():
                place = PurePosixPath(member)
                assert place.parts[0] in (INPUT, DATA) and ".." not in place.parts
                assert SECRET not in archive.read(member)
