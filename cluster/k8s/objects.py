"""PURE: a run as Kubernetes objects: its files, who may talk to its pods, and the RayJob.

The operator makes a Ray cluster for the job, submits the command to its head from a pod of its own
(`K8sJobMode`: that pod's log is the run's, and stays when the cluster has gone), and tries again on
a new cluster when it failed. Only the head writes results, to a volume, where a second try finds
the checkpoints of the first.
"""

from __future__ import annotations

import base64
import re
import shlex
from dataclasses import dataclass

from cluster.k8s.inputs import Inputs
from cluster.k8s.pods import RUN_LABEL, Values, claim, container, labels, mount, pod, scratch

RAY_VERSION = "2.60.0"
"""Of the image. KubeRay turns authentication on where 2.52 or later is stated, nowhere else."""
AUTH_SECRET = "esxsim-auth"
SCENARIO, RESULTS, DATA = "/scenario", "/results", "/data"
SCRATCH = "10Gi"
"""For Ray's logs, what it spills, and compiled kernels."""
METRICS_PORT, AUTOSCALER_METRICS_PORT, DASHBOARD_METRICS_PORT = 8080, 44217, 44227
TTL_S = 300
"""How long the cluster of a finished job stays, for whoever wants to look into it."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a run is done on Kubernetes. Every node is of one size, the head too: hosts go there when
    all workers are lost."""

    name: str
    namespace: str
    image: str
    workers: int
    cpus: int
    memory_mib: int
    results_claim: str
    data_claim: str | None
    seed: int | None
    hosts_per_actor: str
    deadline_s: int
    retries: int
    queue: str | None
    """A LocalQueue of Kueue, which starts the job when it is its turn."""
    publish: str | None
    """Where the finished run's folder is copied to: a URL for fsspec."""
    publish_secret: str | None
    """The Secret whose keys are environment variables with the credentials for that."""


def render(options: Options, inputs: Inputs) -> list[Values]:
    """All objects of a run, in the order in which they are to be made."""
    return [config_map(options, inputs), network_policy(options), ray_job(options, inputs)]


def config_map(options: Options, inputs: Inputs) -> Values:
    """The scenario and its files."""
    text: dict[str, str] = {}
    binary: dict[str, str] = {}
    for key, path in _keys(inputs).items():
        content = inputs.files[path]
        plain = _as_text(content)
        if plain is None:
            binary[key] = base64.b64encode(content).decode()
        else:
            text[key] = plain
    held = {"data": text} | ({"binaryData": binary} if binary else {})
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _metadata(options)} | held


def network_policy(options: Options) -> Values:
    """The pods of a run may talk to each other: to those of no other run."""
    own = {"podSelector": {"matchLabels": {RUN_LABEL: options.name}}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(options),
        "spec": {
            **own,
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [own]}],
            "egress": [{"to": [own]}],
        },
    }


def ray_job(options: Options, inputs: Inputs) -> Values:
    """The job, and the Ray cluster that it runs on."""
    metadata = _metadata(options)
    if options.queue is not None:
        metadata["labels"]["kueue.x-k8s.io/queue-name"] = options.queue
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": metadata,
        "spec": {
            **({} if options.queue is None else {"suspend": True}),
            "entrypoint": entrypoint(options, inputs),
            "submissionMode": "K8sJobMode",
            "backoffLimit": options.retries,
            "activeDeadlineSeconds": options.deadline_s,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": TTL_S,
            "submitterPodTemplate": _submitter(options),
            "rayClusterSpec": {
                "rayVersion": RAY_VERSION,
                "authOptions": {"mode": "token", "secretName": AUTH_SECRET},
                "headGroupSpec": {
                    "rayStartParams": {
                        "dashboard-host": "0.0.0.0",
                        "num-cpus": "0",
                        **_ray_memory(options),
                    },
                    "template": _head(options, inputs),
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "workers",
                        "replicas": options.workers,
                        "minReplicas": options.workers,
                        "maxReplicas": options.workers,
                        "rayStartParams": _ray_memory(options),
                        "template": _worker(options),
                    }
                ],
            },
        },
    }


def entrypoint(options: Options, inputs: Inputs) -> str:
    """What runs on the head. The operator puts it into a shell's command as it stands."""
    out = f"{RESULTS}/{options.name}"
    words = ["esxsim", "run", f"{SCENARIO}/{inputs.file}", "--address", "auto", "--out", out]
    if not inputs.sweep:  # a sweep always goes on with what its folder has
        words.append("--continue")
        if options.hosts_per_actor != "auto":
            words += ["--hosts-per-actor", options.hosts_per_actor]
    if options.seed is not None:
        words += ["--seed", str(options.seed)]
    if inputs.needs_data:
        words += ["--data", DATA]
    if options.publish is None:
        return shlex.join(words)
    then = ["esxsim", "publish", out, f"{options.publish}/{options.name}"]
    return shlex.join(["bash", "-c", f"{shlex.join(words)} && {shlex.join(then)}"])


def quantity(mib: int) -> str:
    """Memory as Kubernetes writes it."""
    return f"{mib}Mi" if mib % 1024 else f"{mib // 1024}Gi"


def _metadata(options: Options) -> Values:
    return {
        "name": options.name,
        "namespace": options.namespace,
        "labels": labels(options.name),
    }


def _ray_memory(options: Options) -> dict[str, str]:
    """How Ray divides a node's memory, in bytes: an eighth remains for its own processes."""
    total = options.memory_mib << 20
    return {"object-store-memory": str(total // 8), "memory": str(total // 4 * 3)}


def _node(options: Options, name: str, mounts: list[Values], ports: dict[str, int]) -> Values:
    """The container of a node. Probes are the operator's, who knows what Ray of this version has
    to answer."""
    mounts = [mount("shm", "/dev/shm"), *mounts]
    found = container(name, options.image, str(options.cpus), quantity(options.memory_mib), mounts)
    found["ports"] = [{"name": one, "containerPort": port} for one, port in ports.items()]
    found["env"] += [
        {"name": "ESXSIM_CACHE", "value": "/tmp/esxsim"},
        {"name": "ESXSIM_LOG", "value": "json"},
    ]
    return found


def _template(options: Options, node: Values, volumes: list[Values]) -> Values:
    # Twice the object store, or Ray would put it on a disk.
    shm = {"medium": "Memory", "sizeLimit": quantity(options.memory_mib // 4)}
    volumes = [scratch(SCRATCH), {"name": "shm", "emptyDir": shm}, *volumes]
    return {"metadata": {"labels": labels(options.name)}, "spec": pod([node], volumes)}


def _head(options: Options, inputs: Inputs) -> Values:
    mounts = [mount("scenario", SCENARIO, read_only=True), mount("results", RESULTS)]
    items = [{"key": key, "path": path} for key, path in _keys(inputs).items()]
    volumes = [
        {"name": "scenario", "configMap": {"name": options.name, "items": items}},
        claim("results", options.results_claim),
    ]
    if inputs.needs_data and options.data_claim is not None:
        mounts.append(mount("data", DATA, read_only=True))
        volumes.append(claim("data", options.data_claim, read_only=True))
    ports = {
        "gcs-server": 6379,
        "dashboard": 8265,
        "metrics": METRICS_PORT,
        "as-metrics": AUTOSCALER_METRICS_PORT,
        "dash-metrics": DASHBOARD_METRICS_PORT,
    }
    node = _node(options, "ray-head", mounts, ports)
    if options.publish_secret is not None:
        node["envFrom"] = [{"secretRef": {"name": options.publish_secret}}]
    return _template(options, node, volumes)


def _worker(options: Options) -> Values:
    node = _node(options, "ray-worker", [], {"metrics": METRICS_PORT})
    return _template(options, node, [])


def _submitter(options: Options) -> Values:
    """The pod that hands the command over and repeats what it says. Its command and the token are
    the operator's."""
    spec = pod([container("submitter", options.image, "500m", "512Mi", [])], [scratch("256Mi")])
    spec["restartPolicy"] = "Never"
    return {"metadata": {"labels": labels(options.name)}, "spec": spec}


def _keys(inputs: Inputs) -> dict[str, str]:
    """Key in the ConfigMap -> path: keys have no `/` and few other signs."""
    found: dict[str, str] = {}
    for number, path in enumerate(inputs.files):
        key = re.sub(r"[^A-Za-z0-9._-]", "-", path)
        found[f"{number}-{key}" if key in found or len(key) > 240 else key] = path
    return found


def _as_text(content: bytes) -> str | None:
    """Content as text where YAML shows it as it is."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return None
    return text if all(line.isprintable() for line in text.split("\n")) else None
