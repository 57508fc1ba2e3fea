"""Results from the volume to a folder here.

The head's pod is gone when a run has ended, so a short-lived pod mounts the volume, and `tar` in it
writes to us. What comes is a stranger's data: nothing in it may leave the folder, and the folder
appears when it is whole.
"""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from cluster.errors import ClusterError
from cluster.files import OutputError, WriteError
from cluster.k8s.api import Cluster, MissingError
from cluster.k8s.follow import until_running
from cluster.k8s.objects import RESULTS
from cluster.k8s.pods import RUN_LABEL, Values, claim, container, labels, mount, pod, scratch

LIFE_S = 600
"""The pod ends by itself after this, if we could not delete it."""
START_S = 180
"""For a node to mount the volume, and to get the image."""
LEFT_OUT = ("checkpoints", ".parts")
"""Of a run's folder: what only a run that goes on needs."""


def fetch_pod(run: str, namespace: str, image: str, results_claim: str) -> Values:
    """PURE: the pod that reads the results of `run`. It has not the run's label, so nothing may
    talk to it. While the run's head is there, it goes to that node: most volumes are mounted on
    one node at a time."""
    mounts = [mount("results", RESULTS, read_only=True)]
    reader = container("fetch", image, "500m", "256Mi", mounts)
    reader["command"] = ["sleep", str(LIFE_S)]
    volumes = [scratch("64Mi"), claim("results", results_claim)]
    spec = pod([reader], volumes)
    near = {
        "topologyKey": "kubernetes.io/hostname",
        "labelSelector": {"matchLabels": {RUN_LABEL: run, "ray.io/node-type": "head"}},
    }
    preferred = [{"weight": 100, "podAffinityTerm": near}]
    spec |= {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": LIFE_S,
        "terminationGracePeriodSeconds": 0,
        "affinity": {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}},
    }
    name = f"{run}-fetch"
    metadata = {"name": name, "namespace": namespace, "labels": labels(name)}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def source(cluster: Cluster, run: str) -> tuple[str, str]:
    """The image of a run, and the claim that has its results. Raises ClusterError, also where the
    run's RayJob has gone."""
    try:
        spec = cluster.job(run)["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
        volumes = {one["name"]: one for one in spec["volumes"]}
        claimed = volumes["results"]["persistentVolumeClaim"]["claimName"]
        return str(spec["containers"][0]["image"]), str(claimed)
    except MissingError as error:
        raise ClusterError(
            f"{error}: name --image and --results-claim to read its results"
        ) from None
    except (LookupError, TypeError):
        raise ClusterError(f"RayJob {run} is none of `esxsim k8s`: it has no results") from None


def fetch(cluster: Cluster, run: str, image: str, results_claim: str, out: Path) -> None:
    """Copy the results of `run` into the new folder `out`.

    Raises OutputError, ClusterError, WriteError.
    """
    if out.exists():
        raise OutputError(f"{out} is there already: name another folder")
    body = fetch_pod(run, cluster.namespace, image, results_claim)
    name = body["metadata"]["name"]
    cluster.create(body)
    try:
        until_running(cluster, name, START_S)
        without = [f"--exclude=./{one}" for one in LEFT_OUT]
        command = ["tar", "--create", *without, "--directory", f"{RESULTS}/{run}", "."]
        with closing(cluster.output(name, command)) as pieces:
            unpack(pieces, out)
    finally:
        cluster.delete("Pod", name)


def unpack(pieces: Iterator[bytes], out: Path) -> None:
    """A tar archive in pieces -> the folder `out`, aside first. Raises as `fetch`."""
    aside = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        with tarfile.open(fileobj=_Stream(pieces), mode="r|") as archive:
            archive.extractall(aside, filter="data")
        for _ in pieces:
            pass  # the padding at the end, and then whether tar failed
        os.replace(aside, out)
    except tarfile.TarError as error:
        raise ClusterError(f"what came of the results is no whole archive: {error}") from None
    except OSError as error:
        raise WriteError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


class _Stream(io.RawIOBase):
    """Pieces of bytes as a file that can be read once."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._held = b""

    def readable(self) -> bool:
        """Yes."""
        return True

    def read(self, size: int = -1) -> bytes:
        """`size` bytes, fewer at the end only."""
        parts, length = [self._held], len(self._held)
        while length < size or size < 0:
            piece = next(self._pieces, None)
            if piece is None:
                break
            parts.append(piece)
            length += len(piece)
        whole = b"".join(parts)
        if size < 0:
            size = len(whole)
        self._held = whole[size:]
        return whole[:size]
