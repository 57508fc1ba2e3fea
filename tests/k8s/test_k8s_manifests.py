"""Every object of k8s/ is one that a server takes, and keeps the rules of policies.py."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import schemas
import yaml
from manifests import BUILDS, K8S, Object, build, files, objects, one, ray_cluster
from policies import RULES, broken

from cluster.k8s import objects as rendering
from cluster.k8s.inputs import collect


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kustomize")


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(K8S)))
def test_a_file_is_valid(path: Path) -> None:
    """Without kubectl too. Patched or not, a file's objects are whole."""
    found = objects(path.read_text())
    assert found
    assert [fault for each in found for fault in schemas.faults(each)] == []
    assert [fault for each in found for fault in broken(each)] == []


@pytest.mark.parametrize("name", BUILDS)
def test_what_kustomize_builds_is_valid(name: str, scratch: Path) -> None:
    found = build(name, scratch)
    assert [fault for each in found for fault in schemas.faults(each)] == []
    assert [fault for each in found for fault in broken(each)] == []
    namespaced = [each for each in found if each["kind"] not in CLUSTER_WIDE]
    assert {each["metadata"]["namespace"] for each in namespaced} == {"esxsim"}
    identities = [(each["kind"], each["metadata"]["name"]) for each in found]
    assert len(set(identities)) == len(identities)


CLUSTER_WIDE = ("Namespace", "ClusterQueue", "ResourceFlavor")


def test_every_folder_with_a_kustomization_is_built() -> None:
    found = {str(path.parent.relative_to(K8S)) for path in K8S.rglob("kustomization.yaml")}
    assert found == set(BUILDS)


def test_the_base_runs_nothing_and_holds_no_secret(scratch: Path) -> None:
    kinds = [each["kind"] for each in build("base", scratch)]
    assert not {"RayJob", "RayCluster", "Secret", "Pod", "Job"} & set(kinds)
    for name in BUILDS:
        assert "Secret" not in [each["kind"] for each in build(name, scratch)]


def test_the_namespace_is_restricted() -> None:
    (namespace,) = objects((K8S / "base" / "namespace.yaml").read_text())
    labels = namespace["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_the_base_job_is_what_render_prints(scratch: Path) -> None:
    """One truth: the command's. The kustomization makes the ConfigMap."""
    options = rendered_options(name="two-hosts", workers=1)
    inputs = collect(
        K8S / "base" / "rayjob" / "scenario.yaml", data_root=None, seed=None, data_claim=None
    )
    config_map, *rest = rendering.render(options, inputs)
    files_of = K8S / "base" / "rayjob"
    for name, wanted in zip(("networkpolicy.yaml", "rayjob.yaml"), rest, strict=True):
        assert objects((files_of / name).read_text()) == [wanted]
    assert one(build("base/rayjob", scratch), "ConfigMap") == config_map


def test_the_long_lived_cluster_has_the_nodes_of_a_run() -> None:
    """But for the scenario, which comes with a run, for names, and for where jobs have results."""
    (cluster,) = objects((K8S / "base" / "raycluster" / "raycluster.yaml").read_text())
    (job,) = objects((K8S / "base" / "rayjob" / "rayjob.yaml").read_text())
    wanted = yaml.safe_load(yaml.safe_dump(ray_cluster(job)).replace("two-hosts", "esxsim"))
    head = wanted["headGroupSpec"]["template"]["spec"]
    head["volumes"] = [each for each in head["volumes"] if each["name"] != "scenario"]
    mounts = head["containers"][0]["volumeMounts"]
    mounts[:] = [each for each in mounts if each["name"] != "scenario"]
    head["containers"][0]["env"].append({"name": "ESXSIM_RESULTS", "value": "/results"})
    wanted["workerGroupSpecs"][0] |= {"replicas": 2, "minReplicas": 2, "maxReplicas": 2}
    assert cluster["spec"] == wanted


def test_the_s3_overlay_is_what_render_prints_for_it(scratch: Path) -> None:
    options = rendered_options(
        name="two-hosts", workers=1, publish="s3://esxsim-results/runs", publish_secret="esxsim-s3"
    )
    path = K8S / "base" / "rayjob" / "scenario.yaml"
    inputs = collect(path, data_root=None, seed=None, data_claim=None)
    assert one(build("overlays/s3", scratch), "RayJob") == rendering.ray_job(options, inputs)


def test_the_kueue_overlay_is_what_render_prints_for_it(scratch: Path) -> None:
    options = rendered_options(name="two-hosts", workers=1, queue="esxsim")
    path = K8S / "base" / "rayjob" / "scenario.yaml"
    inputs = collect(path, data_root=None, seed=None, data_claim=None)
    found = build("overlays/kueue", scratch)
    assert one(found, "RayJob") == rendering.ray_job(options, inputs)
    assert one(found, "LocalQueue")["metadata"]["name"] == "esxsim"


def test_the_autoscaler_may_use_its_account_and_nobody_else(scratch: Path) -> None:
    cluster = one(build("overlays/autoscale", scratch), "RayCluster")["spec"]
    accounts = [
        group["template"]["spec"]["serviceAccountName"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
    ]
    assert accounts == ["esxsim-autoscaler", "esxsim"]


def test_the_monitor_names_ports_that_pods_have(scratch: Path) -> None:
    monitor = one(build("overlays/monitoring", scratch), "PodMonitor")["spec"]
    (job,) = objects((K8S / "base" / "rayjob" / "rayjob.yaml").read_text())
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    ports = {each["name"] for each in head["spec"]["containers"][0]["ports"]}
    assert {each["port"] for each in monitor["podMetricsEndpoints"]} <= ports
    wanted = dict(monitor["selector"]["matchLabels"])
    assert wanted.pop("ray.io/is-ray-node") == "yes"  # the operator's
    assert wanted.items() <= head["metadata"]["labels"].items()


def test_the_dashboard_is_where_grafana_looks(scratch: Path) -> None:
    found = one(build("overlays/monitoring", scratch), "ConfigMap")
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert list(found["data"]) == ["dashboard.json"]


def test_submitters_may_do_what_the_command_does() -> None:
    role = objects((K8S / "base" / "role.yaml").read_text())[0]
    granted = {
        (resource, verb)
        for rule in role["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    needed = {(kind, verb) for kind in ("rayjobs", "configmaps", "networkpolicies", "pods")
              for verb in ("create", "get", "delete")}  # fmt: skip
    needed |= {("rayjobs", "list"), ("rayjobs", "watch"), ("pods", "list"), ("pods/log", "get")}
    needed |= {("pods/exec", "get")}
    assert needed <= granted
    assert not {resource for resource, _ in granted} & {"secrets", "serviceaccounts/token", "*"}


OPERATOR_KEYS = {
    *("nameOverride", "fullnameOverride", "componentOverride", "replicas", "image"),
    *("imagePullSecrets", "nodeSelector", "priorityClassName", "labels", "annotations", "affinity"),
    *("tolerations", "serviceAccount", "logging", "batchScheduler", "configuration"),
    *("featureGates", "metrics", "operatorCommand", "leaderElectionEnabled"),
    *("reconcileConcurrency", "kubeClient", "rbacEnable", "crNamespacedRbacEnable"),
    *("singleNamespaceInstall", "watchNamespace", "env", "resources", "livenessProbe"),
    *("readinessProbe", "hostUsers", "podSecurityContext", "securityContext", "service"),
}
"""Top-level keys of the chart's values.yaml (kuberay, helm-chart/kuberay-operator)."""


def test_the_operator_s_values_are_keys_of_its_chart() -> None:
    values = yaml.safe_load((K8S / "operator-values.yaml").read_text())
    assert values.keys() <= OPERATOR_KEYS
    assert values["image"]["tag"] == "v1.7.0"
    assert values["watchNamespace"] == ["esxsim"]


# Each rule can fail, and so can the check of schemas


def rendered_options(**values: Any) -> rendering.Options:
    given: dict[str, Any] = {
        "name": "run",
        "namespace": "esxsim",
        "image": "registry.example/esxsim:0.1.0",
        "workers": 2,
        "cpus": 2,
        "memory_mib": 4096,
        "results_claim": "esxsim-results",
        "data_claim": None,
        "seed": None,
        "hosts_per_actor": "auto",
        "deadline_s": 86_400,
        "retries": 3,
        "queue": None,
        "publish": None,
        "publish_secret": None,
    }
    return rendering.Options(**(given | values))


HEAD = "rayClusterSpec.headGroupSpec"
POD = f"{HEAD}.template.spec"
RAY = f"{POD}.containers.0"
WORKERS = "rayClusterSpec.workerGroupSpecs.0"
BROKEN: list[tuple[str, str, Any]] = [
    ("authentication", "rayClusterSpec.authOptions", None),
    ("authentication", "rayClusterSpec.authOptions.mode", "disabled"),
    ("authentication", "rayClusterSpec.rayVersion", None),
    ("authentication", "rayClusterSpec.rayVersion", "2.51.9"),
    ("job", "submissionMode", "K8SJobMode"),
    ("job", "shutdownAfterJobFinishes", False),
    ("job", "activeDeadlineSeconds", None),
    ("job", "backoffLimit", 0),
    ("replicas", f"{WORKERS}.minReplicas", None),
    ("replicas", f"{WORKERS}.maxReplicas", 0),
    ("nodes", f"{HEAD}.rayStartParams.num-cpus", "2"),
    ("nodes", f"{HEAD}.rayStartParams.dashboard-host", None),
    ("nodes", f"{RAY}.livenessProbe", {"tcpSocket": {"port": 6379}}),
    ("nodes", f"{RAY}.ports.4", {"name": "dash-metrics", "containerPort": 1}),
    ("nodes", f"{RAY}.command", ["ray", "start"]),
    ("memory", f"{RAY}.resources.limits.memory", "3584Mi"),
    ("memory", f"{POD}.volumes.1.emptyDir.medium", None),
    ("memory", f"{POD}.volumes.1.emptyDir.sizeLimit", "256Mi"),
    ("results", "entrypoint", "esxsim run /scenario/a.yaml --out /tmp/ray/two-hosts"),
    ("results", f"{RAY}.volumeMounts.3.readOnly", True),
    ("restricted", f"{POD}.securityContext.runAsUser", 0),
    ("restricted", f"{POD}.securityContext.seccompProfile", None),
    ("restricted", f"{POD}.hostNetwork", True),
    ("restricted", f"{POD}.volumes.0", {"name": "tmp", "hostPath": {"path": "/tmp"}}),
    ("restricted", f"{POD}.automountServiceAccountToken", None),
    ("restricted", f"{RAY}.securityContext.allowPrivilegeEscalation", True),
    ("restricted", f"{RAY}.securityContext.capabilities.drop", ["NET_RAW"]),
    ("restricted", f"{RAY}.securityContext.readOnlyRootFilesystem", False),
    ("restricted", f"{RAY}.volumeMounts.0.mountPath", "/var/tmp"),
    ("restricted", f"{RAY}.resources.limits.cpu", None),
    ("restricted", "submitterPodTemplate.spec.securityContext", None),
    ("images", f"{RAY}.image", "registry.example:5000/esxsim"),
    ("images", f"{RAY}.image", "esxsim:latest"),
    ("secrets", f"{RAY}.env.0", {"name": "RAY_AUTH_TOKEN", "value": "abc"}),
    ("autoscaler", "rayClusterSpec.enableInTreeAutoscaling", True),
    ("queue", "suspend", True),
]


def changed(found: Object, place: str, value: Any) -> Object:
    """An object with another value at a place of its spec; None takes it away."""
    whole = copy.deepcopy(found)
    at: Any = whole["spec"]
    *way, last = [int(step) if step.isdecimal() else step for step in place.split(".")]
    for step in way:
        at = at[step]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return whole


def base_job() -> Object:
    return one(objects((K8S / "base" / "rayjob" / "rayjob.yaml").read_text()), "RayJob")


@pytest.mark.parametrize(("rule", "place", "value"), BROKEN)
def test_a_job_that_breaks_a_rule_is_found(rule: str, place: str, value: Any) -> None:
    found = broken(changed(base_job(), place, value))
    assert rule in {each.partition(":")[0] for each in found}


def test_every_rule_is_broken_above() -> None:
    assert {rule.__name__ for rule in RULES} == {rule for rule, *_ in BROKEN}


def test_a_secret_with_a_token_is_found() -> None:
    (secret,) = objects((K8S / "base" / "auth-secret.example.yaml").read_text())
    assert broken(secret) == []
    assert broken(secret | {"stringData": {"auth_token": "abc"}}) != []


@pytest.mark.parametrize(
    ("place", "value", "wanted"),
    [
        ("entrypont", "x", "unknown field"),
        ("rayClusterSpec.headGroupSpec", None, "is required"),
        ("rayClusterSpec.workerGroupSpecs.0.groupName", None, "is required"),
        ("rayClusterSpec.authOptions.mode", "tokens", "must be one of"),
        ("backoffLimit", "3", "must be integer"),
        ("backoffLimit", True, "must be integer"),
        ("preRunningDeadlineSeconds", 0, "is below"),
        (f"{RAY}.resources.limits.memory", "4 GB", "is no quantity"),
        (f"{RAY}.resources.limits.memory", 1.5, "whole number or text"),
        (f"{POD}.securityContext.runAsUid", 1000, "unknown field"),
        (f"{HEAD}.rayStartParams.num-cpus", 0, "must be string"),
    ],
)
def test_an_object_that_the_crd_does_not_have_is_found(place: str, value: Any, wanted: str) -> None:
    (found,) = schemas.faults(changed(base_job(), place, value))
    assert wanted in found


def test_defaults_come_before_what_is_required() -> None:
    """minReplicas and maxReplicas are required, and have defaults."""
    assert schemas.faults(changed(base_job(), f"{WORKERS}.minReplicas", None)) == []


def test_an_unknown_field_of_a_built_in_object_is_found() -> None:
    (claim,) = objects((K8S / "base" / "results.yaml").read_text())
    assert schemas.faults(claim) == []
    assert schemas.faults(changed(claim, "accessMode", ["ReadWriteOnce"])) != []


def test_only_the_crds_know_what_they_know() -> None:
    """An object of a kind for which there is no schema is an error, not valid."""
    unknown: Callable[[], list[str]] = lambda: schemas.faults(  # noqa: E731
        {"apiVersion": "example.org/v1", "kind": "Thing", "metadata": {}}
    )
    with pytest.raises(schemas.kubernetes_validate.SchemaNotFoundError):
        unknown()
