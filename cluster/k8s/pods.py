"""PURE: what all of our pods have: they run as uid 1000 with no rights, on a root file system that
is read-only, so the `restricted` Pod Security Standard lets them in. What they write goes to
volumes; what they need of each other goes by label."""

from __future__ import annotations

from typing import Any

RUN_LABEL = "esxsim/run"
"""All that belongs to a run: the key of its pods' label, whose value is the run's name."""
SERVICE_ACCOUNT = "esxsim"
UID = 1000
TMP = "/tmp"

Values = dict[str, Any]
"""A part of a Kubernetes object."""


def labels(run: str) -> Values:
    """Labels of all that belongs to a run. `app.kubernetes.io/name` is not among them: by that of
    its own, the operator's services find their pods."""
    return {"app.kubernetes.io/part-of": "esxsim", RUN_LABEL: run}


def pod(containers: list[Values], volumes: list[Values]) -> Values:
    """A pod's spec. The token of its service account stays out."""
    return {
        "serviceAccountName": SERVICE_ACCOUNT,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": UID,
            "runAsGroup": UID,
            "fsGroup": UID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": containers,
        "volumes": volumes,
    }


def container(name: str, image: str, cpus: str, memory: str, mounts: list[Values]) -> Values:
    """A container that gets exactly what it asks for; /tmp must be among the pod's volumes."""
    size = {"cpu": cpus, "memory": memory}
    return {
        "name": name,
        "image": image,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "env": [{"name": "HOME", "value": TMP}],
        "resources": {"requests": size, "limits": dict(size)},
        "volumeMounts": [mount("tmp", TMP), *mounts],
    }


def mount(volume: str, path: str, *, read_only: bool = False) -> Values:
    """Where a container sees a volume."""
    return {"name": volume, "mountPath": path} | ({"readOnly": True} if read_only else {})


def scratch(size: str) -> Values:
    """The volume of /tmp."""
    return {"name": "tmp", "emptyDir": {"sizeLimit": size}}


def claim(volume: str, name: str, *, read_only: bool = False) -> Values:
    """A volume that outlives pods."""
    source = {"claimName": name} | ({"readOnly": True} if read_only else {})
    return {"name": volume, "persistentVolumeClaim": source}
