"""What no schema says: the operator's own checks, what Ray needs, and the rules of this house.

Each rule takes an object and yields what breaks it; one that does not concern an object yields
nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from manifests import Object, pod_templates, ray_cluster

SUBMISSION_MODES = ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode")
"""KubeRay's; its schema takes any text."""
UNITS = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "": 1}
VOLUMES = ("configMap", "emptyDir", "persistentVolumeClaim", "secret", "projected", "downwardAPI")
"""Of the `restricted` Pod Security Standard, those that are a file system."""
METRICS = {"head": {8080, 44217, 44227}, "worker": {8080}}


def bytes_of(quantity: Any) -> int:
    """512Mi -> bytes."""
    number, unit = re.fullmatch(r"([0-9]+)([KMG]i)?", str(quantity)).groups()  # type: ignore[union-attr]
    return int(number) * UNITS[unit or ""]


def groups(found: Object) -> Iterator[tuple[str, Object, Object]]:
    """Role, group and its container of Ray, of each group of nodes."""
    cluster = ray_cluster(found)
    if cluster is not None:
        for role, group in (
            ("head", cluster["headGroupSpec"]),
            *(("worker", one) for one in cluster["workerGroupSpecs"]),
        ):
            yield role, group, group["template"]["spec"]["containers"][0]


def authentication(found: Object) -> Iterator[str]:
    """KubeRay (validation.go): token mode needs rayVersion, 2.52 or later, stated. Nothing else
    turns it on."""
    cluster = ray_cluster(found)
    if cluster is not None:
        if cluster.get("authOptions") != {"mode": "token", "secretName": "esxsim-auth"}:
            yield "asks for no token"
        version = tuple(int(one) for one in cluster.get("rayVersion", "0").split("."))
        if version < (2, 52):
            yield f"rayVersion {version} has no authentication"


def job(found: Object) -> Iterator[str]:
    """KubeRay (validation.go): names, TTL, modes; and that a job ends, and is tried again."""
    if found["kind"] not in ("RayJob", "RayCluster"):
        return
    most = {"RayJob": 47, "RayCluster": 53}[found["kind"]]
    name = found["metadata"]["name"]
    if len(name) > most or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield f"{name} is no name"
    if found["kind"] == "RayCluster":
        return
    spec = found["spec"]
    if spec.get("submissionMode") not in SUBMISSION_MODES:
        yield "no submissionMode that KubeRay knows"
    if spec.get("ttlSecondsAfterFinished", 0) > 0 and not spec.get("shutdownAfterJobFinishes"):
        yield "a TTL needs shutdownAfterJobFinishes"
    if not spec.get("shutdownAfterJobFinishes"):
        yield "the cluster stays when the job is done"
    for key in ("activeDeadlineSeconds", "backoffLimit"):
        if spec.get(key, 0) <= 0:
            yield f"no {key}"


def replicas(found: Object) -> Iterator[str]:
    """The schema's defaults are 0 and 2147483647: who wants these says so."""
    for role, group, _ in groups(found):
        if role == "worker":
            if not {"replicas", "minReplicas", "maxReplicas"} <= group.keys():
                yield "replicas are not stated"
            elif not group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
                yield "replicas are not between their bounds"


def nodes(found: Object) -> Iterator[str]:
    """What Ray is started with, and what of a node is the operator's to say."""
    for role, group, container in groups(found):
        start = group["rayStartParams"]
        if role == "head" and start.get("num-cpus") != "0":
            yield "the head offers CPUs to tasks"
        if role == "head" and start.get("dashboard-host") != "0.0.0.0":
            yield "nobody can ask the dashboard"
        if any(key.endswith("Probe") for key in container):
            yield f"{role}: probes are the operator's"
        ports = {one["containerPort"] for one in container.get("ports", ())}
        if not METRICS[role] <= ports:
            yield f"{role}: a metrics port is not declared"
        if container.get("command") or container.get("args"):
            yield f"{role}: the command is the operator's"


def memory(found: Object) -> Iterator[str]:
    """A container's limit is above what Ray may take; the object store is in memory."""
    for role, group, container in groups(found):
        start, limit = group["rayStartParams"], container["resources"]["limits"]["memory"]
        store, heap = int(start["object-store-memory"]), int(start["memory"])
        if store + heap >= bytes_of(limit):
            yield f"{role}: object store and heap take {store + heap} of {limit}"
        volumes = {one["name"]: one for one in group["template"]["spec"]["volumes"]}
        mounts = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
        shm = volumes.get(mounts.get("/dev/shm", ""), {}).get("emptyDir", {})
        if shm.get("medium") != "Memory" or bytes_of(shm.get("sizeLimit", 0)) < store:
            yield f"{role}: /dev/shm is no memory, or too small for the object store"


def results(found: Object) -> Iterator[str]:
    """Pods vanish after the job: what it writes, checkpoints among it, is on a volume."""
    if found["kind"] != "RayJob":
        return
    head = found["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    claims = [one["name"] for one in head["volumes"] if "persistentVolumeClaim" in one]
    kept = [
        one["mountPath"]
        for one in head["containers"][0]["volumeMounts"]
        if one["name"] in claims and not one.get("readOnly")
    ]
    out = re.search(r"--out (\S+)", found["spec"]["entrypoint"])
    if out is None or not any(out[1].startswith(f"{path}/") for path in kept):
        yield "results do not outlive the pod"


def restricted(found: Object) -> Iterator[str]:
    """The `restricted` Pod Security Standard, and beyond it uid 1000, a root file system that is
    read-only, limits, and no token of a service account."""
    for role, template in pod_templates(found):
        spec = template["spec"]
        own = spec.get("securityContext", {})
        if (own.get("runAsNonRoot"), own.get("runAsUser"), own.get("fsGroup")) != (
            True,
            1000,
            1000,
        ):
            yield f"{role}: does not run as uid 1000"
        if own.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{role}: no seccomp profile"
        if any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
            yield f"{role}: shares what is the node's"
        for volume in spec.get("volumes", ()):
            if not volume.keys() - {"name"} <= set(VOLUMES):
                yield f"{role}: volume {volume['name']} is of no kind that is allowed"
        autoscales = bool((ray_cluster(found) or {}).get("enableInTreeAutoscaling"))
        if spec.get("automountServiceAccountToken") is not (role == "head" and autoscales):
            yield f"{role}: token of the service account"
        extra = (ray_cluster(found) or {}).get("autoscalerOptions") if role == "head" else None
        for container in (*spec["containers"], *([extra] if extra else ())):
            yield from _container(role, container)


def _container(role: str, container: Object) -> Iterator[str]:
    own = container.get("securityContext", {})
    if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
        yield f"{role}: may get more rights"
    if own.get("capabilities") != {"drop": ["ALL"]}:
        yield f"{role}: has capabilities"
    if not own.get("readOnlyRootFilesystem"):
        yield f"{role}: writes to its root"
    if "/tmp" not in [one["mountPath"] for one in container.get("volumeMounts", ())]:
        yield f"{role}: has no /tmp"
    for part in ("requests", "limits"):
        if not {"cpu", "memory"} <= container.get("resources", {}).get(part, {}).keys():
            yield f"{role}: no {part}"


def images(found: Object) -> Iterator[str]:
    """An image has a tag or a digest that says which."""
    for role, template in pod_templates(found):
        for container in template["spec"]["containers"]:
            name = container["image"].rpartition("/")[2]
            if "@sha256:" not in name and (":" not in name or name.endswith(":latest")):
                yield f"{role}: {container['image']} is of no certain version"


def secrets(found: Object) -> Iterator[str]:
    """No token is in a manifest: they come by reference."""
    if found["kind"] == "Secret" and any((found.get("data") or found["stringData"]).values()):
        yield "holds a secret"
    for role, template in pod_templates(found):
        for container in template["spec"]["containers"]:
            for variable in container.get("env", ()):
                if re.search(r"TOKEN|SECRET|PASSWORD|KEY", variable["name"]) and variable.get(
                    "value"
                ):
                    yield f"{role}: {variable['name']} is written down"


def autoscaler(found: Object) -> Iterator[str]:
    """KubeRay (validation.go): the version is stated once, and pods of v2 are not restarted."""
    cluster = ray_cluster(found)
    if cluster is None or not cluster.get("enableInTreeAutoscaling"):
        return
    if (cluster.get("autoscalerOptions") or {}).get("version") != "v2":
        yield "not the autoscaler v2"
    for role, group, container in groups(found):
        if "RAY_enable_autoscaler_v2" in [one["name"] for one in container.get("env", ())]:
            yield f"{role}: the version is stated twice"
        if group["template"]["spec"].get("restartPolicy") != "Never":
            yield f"{role}: pods are restarted"


def queue(found: Object) -> Iterator[str]:
    """Kueue starts what is suspended, and only what gives its nodes back."""
    if found["kind"] != "RayJob":
        return
    queued = "kueue.x-k8s.io/queue-name" in found["metadata"].get("labels", {})
    if queued != bool(found["spec"].get("suspend")):
        yield "is suspended without a queue, or in a queue and not suspended"


RULES: tuple[Callable[[Object], Iterator[str]], ...] = (
    *(authentication, job, replicas, nodes, memory, results, restricted, images, secrets),
    *(autoscaler, queue),
)


def broken(found: Object) -> list[str]:
    """All that is wrong with an object."""
    return [f"{rule.__name__}: {what}" for rule in RULES for what in rule(found)]
