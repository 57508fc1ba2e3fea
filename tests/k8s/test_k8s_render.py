"""`esxsim k8s render`: which files go along, what becomes of them, and the objects of a run."""

from __future__ import annotations

import base64
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import schemas
import yaml
from hash_files import write_npz
from hypothesis import given
from hypothesis import strategies as st
from manifests import ROOT, Object, objects, one
from policies import broken
from scenario_files import STEADY, changed, make_trace, save, trace_of, write
from test_k8s_manifests import rendered_options
from typer.testing import CliRunner

from cluster.cli import app
from cluster.k8s import inputs as reading
from cluster.k8s import objects as rendering
from cluster.k8s import yaml_output
from cluster.k8s.inputs import CONFIG_MAP_BYTES, NAME_MAX, Inputs, collect, slug
from cluster.yaml_input import InputError

GOLDEN = Path(__file__).parent / "golden"
IMAGE = "registry.example/esxsim:0.1.0"


def render(*words: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["k8s", "render", *words])
    return done.exit_code, done.stdout, done.stderr


def collected(path: Path, **values: Any) -> Inputs:
    given_ = {"data_root": None, "seed": None, "data_claim": None} | values
    return collect(path, **given_)


# Golden files: what a reader of a run's objects sees, as reviewed

CASES: dict[str, tuple[str, ...]] = {
    "plain": (),
    "all-options": (
        *("--namespace", "lab", "--name", "mine", "--workers", "3", "--cpus", "4"),
        *("--memory", "6Gi", "--seed", "7", "--hosts-per-actor", "2", "--deadline", "7200"),
        *("--retries", "1", "--queue", "planners", "--results-claim", "kept"),
        *("--publish", "s3://bucket/runs", "--publish-secret", "bucket"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rendered_objects_are_as_reviewed(name: str, tmp_path: Path) -> None:
    path = write(tmp_path, (GOLDEN / "scenario.yaml").read_text())
    code, printed, _ = render(str(path), "--image", IMAGE, *CASES[name])
    assert code == 0
    assert printed == (GOLDEN / f"{name}.yaml").read_text()


@pytest.mark.parametrize("name", CASES)
def test_rendered_objects_are_valid(name: str) -> None:
    found = objects((GOLDEN / f"{name}.yaml").read_text())
    assert [each["kind"] for each in found] == ["ConfigMap", "NetworkPolicy", "RayJob"]
    assert [fault for each in found for fault in schemas.faults(each)] == []
    assert [fault for each in found for fault in broken(each)] == []


SCENARIOS = [path for path in sorted((ROOT / "scenarios").glob("*.yaml")) if path.stem != "images"]


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_own_scenarios_render_to_what_a_server_takes(path: Path) -> None:
    claim = ("--data-claim", "traces") if "data:" in path.read_text() else ()
    code, printed, said = render(str(path), "--image", IMAGE, *claim)
    assert code == 0, said
    found = objects(printed)
    assert [fault for each in found for fault in schemas.faults(each)] == []
    assert [fault for each in found for fault in broken(each)] == []


# Which files go along


def as_mounted(found: list[Object]) -> dict[str, bytes]:
    """What the head sees below /scenario."""
    config = one(found, "ConfigMap")
    held = {key: text.encode() for key, text in config["data"].items()}
    held |= {key: base64.b64decode(text) for key, text in config.get("binaryData", {}).items()}
    spec = one(found, "RayJob")["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (volume,) = [each for each in spec["volumes"] if each["name"] == "scenario"]
    assert volume["configMap"]["name"] == config["metadata"]["name"]
    items = {each["path"]: held[each["key"]] for each in volume["configMap"]["items"]}
    assert len(items) == len(held)
    return items


def test_the_quickstart_brings_its_images_and_its_trace() -> None:
    code, printed, _ = render(str(ROOT / "scenarios" / "quickstart.yaml"), "--image", IMAGE)
    assert code == 0
    mounted = as_mounted(objects(printed))
    folder = ROOT / "scenarios"
    names = {"quickstart.yaml", "images.yaml", "traces/azure-v1-sample/vms.parquet"}
    assert mounted == {name: (folder / name).read_bytes() for name in names}


def test_what_is_mounted_runs(tmp_path: Path) -> None:
    """The files that go along are all that a run needs: they load alone, to the same digest."""
    from cluster.scenario_file import load

    _, printed, _ = render(str(ROOT / "scenarios" / "quickstart.yaml"), "--image", IMAGE)
    for name, content in as_mounted(objects(printed)).items():
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    there = load(ROOT / "scenarios" / "quickstart.yaml").digest
    assert load(tmp_path / "quickstart.yaml").digest == there


def with_hashes(folder: Path, **more: Any) -> Object:
    write_npz(folder, "guests.npz", **more)
    image = {"name": "linux", "content": {"hashes": "guests.npz"}}
    vms = [{"name": "web", "count": 1, "memory": "8 MiB", "image": "linux"}]
    return changed(images=[image], vms=vms, workloads=None, fidelity={"sample": 1})


def test_hashes_and_failures_go_along(tmp_path: Path) -> None:
    (tmp_path / "failures.csv").write_text("at_s,host,repair_s\n60,esx-1,60\n")
    data = with_hashes(tmp_path) | {"availability": {"trace": "failures.csv"}}
    (tmp_path / "stray.csv").write_text("not named, so not sent")
    found = collected(write(tmp_path, data))
    assert list(found.files) == ["failures.csv", "guests.npz", "scenario.yaml"]


def test_of_a_trace_goes_along_what_is_read(tmp_path: Path) -> None:
    save(tmp_path, make_trace())
    data = changed(vms=None, trace=trace_of(workloads=STEADY))
    (tmp_path / "trace" / "notes.txt").write_text("read by nobody")
    found = collected(write(tmp_path, data))
    assert {"trace/vms.parquet", "trace/usage.parquet"} <= found.files.keys()
    assert "trace/notes.txt" not in found.files


def test_a_sweep_brings_what_any_of_its_points_names(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text("at_s,host,repair_s\n60,esx-1,60\n")
    data = changed(
        availability={"trace": "a.csv"},
        sweep={"vary": {"availability.trace": ["a.csv", "b.csv"]}},
    )
    path = write(tmp_path, data)
    found = collected(path)
    assert found.sweep
    assert list(found.files) == ["a.csv", "b.csv", "scenario.yaml"]
    code, _, said = render(str(path), "--image", IMAGE, "--workers", "0")
    assert (code, "offers none" in said) == (2, True)
    words = shlex.split(rendering.entrypoint(rendered_options(), found))
    assert "--continue" not in words  # a sweep always does
    assert "--hosts-per-actor" not in words


def test_a_folder_of_data_is_a_volume(tmp_path: Path) -> None:
    save(tmp_path / "data", make_trace(), "rnd")
    source = {"data": "rnd", "images": {"linux": 1}, "workloads": STEADY}
    path = write(tmp_path, changed(vms=None, trace=source))
    with pytest.raises(InputError, match="--data-claim"):
        collected(path, data_root=tmp_path / "data")
    found = collected(path, data_root=tmp_path / "data", data_claim="traces")
    assert list(found.files) == ["scenario.yaml"]
    job = rendering.ray_job(rendered_options(data_claim="traces"), found)
    assert "--data /data" in job["spec"]["entrypoint"]
    spec = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    mount = {"name": "data", "mountPath": "/data", "readOnly": True}
    assert mount in spec["containers"][0]["volumeMounts"]
    assert schemas.faults(job) == []
    assert broken(job) == []


def test_data_that_lies_in_the_cluster_only_is_checked_there(tmp_path: Path) -> None:
    source = {"data": "rnd", "images": {"linux": 1}, "workloads": STEADY}
    path = write(tmp_path, changed(vms=None, trace=source))
    found = collected(path, data_claim="traces")
    assert found.needs_data
    (warning,) = found.warnings
    assert warning.startswith("trace.data: not found here")
    # What else is wrong with it is told all the same.
    path = write(tmp_path, changed(vms=None, trace=source, duration="1 parsec"))
    with pytest.raises(InputError, match="duration") as caught:
        collected(path, data_claim="traces")
    assert "trace.data" not in str(caught.value)


def test_hashes_that_lie_in_the_cluster_only_are_checked_there(tmp_path: Path) -> None:
    data = with_hashes(tmp_path)
    data["images"][0]["content"]["data"] = "guests"
    assert collected(write(tmp_path, data), data_claim="traces").needs_data
    # Those of the scenario's own folder must be here.
    del data["images"][0]["content"]["data"]
    (tmp_path / "guests.npz").unlink()
    with pytest.raises(InputError, match="hashes"):
        collected(write(tmp_path, data), data_claim="traces")


# What is refused


def test_what_does_not_fit_says_what_to_do(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).bytes(CONFIG_MAP_BYTES)
    data = with_hashes(tmp_path, noise=np.frombuffer(noise, np.uint8))
    code, printed, said = render(str(write(tmp_path, data)), "--image", IMAGE)
    assert (code, printed) == (2, "")
    assert "guests.npz (10" in said
    assert "--data-claim" in said
    assert said.count("\n") == 1


def test_a_megabyte_fits(tmp_path: Path) -> None:
    path = write(tmp_path, changed())
    rest = CONFIG_MAP_BYTES - path.stat().st_size
    files = {"scenario.yaml": path.read_bytes(), "x": b"x" * rest}
    reading._check_size(path, files)
    with pytest.raises(InputError):
        reading._check_size(path, files | {"x": b"x" * (rest + 1)})


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("--memory", "512Mi"), "1Gi or more"),
        (("--memory", "4 GiB"), "1Gi or more"),
        (("--name", "Mine"), "small letters"),
        (("--name", "a" * 48), "47 characters"),
        (("--namespace", "x y"), "small letters"),
        (("--data-claim", "../x"), "small letters"),
        (("--hosts-per-actor", "0"), "whole number from 1"),
        (("--publish", "bucket/runs"), "must be a URL"),
        (("--publish", "s3://me:secret@bucket/runs"), "without credentials"),
        (("--publish", "s3://bucket/$(id)"), "must be a URL"),
        (("--publish-secret", "x"), "is for --publish"),
        (("--workers", "-1"), "--workers"),
    ],
)
def test_a_wrong_option_is_refused(words: tuple[str, str], wanted: str, tmp_path: Path) -> None:
    path = write(tmp_path, changed())
    code, printed, said = render(str(path), "--image", IMAGE, *words)
    assert (code, printed) == (2, "")
    assert wanted in said
    assert "secret@" not in said


@pytest.mark.parametrize("image", ["-x", "a b", "", "a;b"])
def test_a_wrong_image_is_refused(image: str, tmp_path: Path) -> None:
    code, _, said = render(str(write(tmp_path, changed())), f"--image={image}")
    assert code == 2
    assert "--image" in said


def test_a_wrong_scenario_is_refused_with_all_its_problems(tmp_path: Path) -> None:
    path = write(tmp_path, changed(duration="1 parsec", tick="-1 s"))
    code, printed, said = render(str(path), "--image", IMAGE)
    assert (code, printed) == (2, "")
    assert "duration" in said
    assert "tick" in said


def test_a_file_outside_the_folder_does_not_go_along(tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text("at_s,host,repair_s\n")
    folder = tmp_path / "scenario"
    folder.mkdir()
    (folder / "link.csv").symlink_to(tmp_path / "secret.csv")
    for name in ("../secret.csv", str(tmp_path / "secret.csv"), "link.csv"):
        with pytest.raises(InputError):
            collected(write(folder, changed(availability={"trace": name})))


# Names, keys, texts


def test_equal_inputs_have_equal_names(tmp_path: Path) -> None:
    found = collected(write(tmp_path, changed()))
    again = collected(write(tmp_path, changed()))
    other = collected(write(tmp_path, changed(duration="2 h")))
    assert found.name == again.name != other.name
    assert found.name.startswith("small-1-")
    assert collected(write(tmp_path, changed()), seed=7).name.startswith("small-7-")


@given(st.text(max_size=80))
def test_any_name_becomes_one_that_kubernetes_takes(text: str) -> None:
    name = Inputs("a", {"a": b""}, slug(text), False, False, ()).name
    assert len(name) <= NAME_MAX
    assert broken({"kind": "RayCluster", "metadata": {"name": name}, "spec": CLUSTER}) == []


CLUSTER = objects((ROOT / "k8s" / "base" / "raycluster" / "raycluster.yaml").read_text())[0]["spec"]
NAMES = st.text("abc/.-_ é", min_size=1, max_size=12)


@given(st.dictionaries(NAMES, st.binary(max_size=40) | st.text(max_size=40).map(str.encode)))
def test_any_file_comes_through_unchanged(files: dict[str, bytes]) -> None:
    """Keys are valid and distinct, and content is what it was, whatever paths and bytes."""
    given_ = Inputs("a", dict(sorted(files.items())), "run", False, False, ())
    config = rendering.config_map(rendered_options(), given_)
    assert schemas.faults(config) == []
    read = yaml.safe_load(yaml_output.dump([config]))
    held = {key: text.encode() for key, text in read["data"].items()}
    held |= {key: base64.b64decode(text) for key, text in read.get("binaryData", {}).items()}
    keys = rendering._keys(given_)
    assert {path: held[key] for key, path in keys.items()} == files


def test_the_command_survives_both_shells(tmp_path: Path) -> None:
    """The operator pastes it into one, and Ray's command line into another (list2cmdline)."""
    from subprocess import list2cmdline

    found = collected(write(tmp_path, changed()))
    options = rendered_options(publish="s3://bucket/runs")
    pasted = shlex.split(rendering.entrypoint(options, found))
    assert pasted[:2] == ["bash", "-c"]
    (script,) = shlex.split(list2cmdline(pasted))[2:]
    assert script.split(" && ") == [
        "esxsim run /scenario/scenario.yaml --address auto --out /results/run --continue",
        "esxsim publish /results/run s3://bucket/runs/run",
    ]
