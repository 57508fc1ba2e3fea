"""Manifests for tests: files one by one, and as kustomize builds them where kubectl is present."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
CRDS = ROOT.parent / "shared" / "data" / "kuberay-crds"
BUILDS = (
    *("base", "base/rayjob", "base/raycluster"),
    *("overlays/local", "overlays/autoscale", "overlays/kueue", "overlays/monitoring"),
    "overlays/s3",
)

Object = dict[str, Any]


def objects(text: str) -> list[Object]:
    """The documents of a YAML file."""
    return [one for one in yaml.safe_load_all(text) if one is not None]


def files() -> list[Path]:
    """Files of k8s/ that hold whole objects: no patches, no kustomizations, no values of Helm."""
    found = []
    for path in sorted(K8S.rglob("*.yaml")):
        docs = objects(path.read_text())
        if path.name != "kustomization.yaml" and all(
            isinstance(one, dict) and {"apiVersion", "kind", "metadata"} <= one.keys()
            for one in docs
        ):
            found.append(path)
    return [path for path in found if not is_patch(path)]


def is_patch(path: Path) -> bool:
    """Whether the kustomization beside a file takes it as a patch."""
    beside = path.parent / "kustomization.yaml"
    if not beside.exists():
        return False
    patches = yaml.safe_load(beside.read_text()).get("patches") or []
    return path.name in [one.get("path") for one in patches]


def build(name: str, scratch: Path) -> list[Object]:
    """What `kubectl apply -k` would send. The dashboard is made elsewhere, so one that is not there
    yet is stood in for."""
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl")
    tree = scratch / "k8s"
    if not tree.exists():
        shutil.copytree(K8S, tree)
        dashboard = tree / "overlays" / "monitoring" / "dashboard.json"
        if not dashboard.exists():
            dashboard.write_text("{}\n")
    command = ["kubectl", "kustomize", str(tree / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return objects(done.stdout)


def one(found: list[Object], kind: str) -> Object:
    """The only object of a kind."""
    (only,) = [each for each in found if each["kind"] == kind]
    return only


def ray_cluster(owner: Object) -> Object | None:
    """The spec of the Ray cluster that an object makes."""
    if owner["kind"] == "RayCluster":
        return dict(owner["spec"])
    return owner["spec"]["rayClusterSpec"] if owner["kind"] == "RayJob" else None


def pod_templates(owner: Object) -> Iterator[tuple[str, Object]]:
    """Role and template (metadata and spec) of each pod that comes of an object."""
    if owner["kind"] == "Pod":
        yield "pod", owner
    cluster = ray_cluster(owner)
    if cluster is not None:
        yield "head", cluster["headGroupSpec"]["template"]
        for group in cluster["workerGroupSpecs"]:
            yield "worker", group["template"]
    if owner["kind"] == "RayJob":
        yield "submitter", owner["spec"]["submitterPodTemplate"]
