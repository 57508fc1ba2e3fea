"""Who may talk to whom, by the network policies of base, of overlays and of runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from manifests import K8S, Object, objects
from network import End, allowed, pod
from test_k8s_manifests import rendered_options

from cluster.k8s.objects import network_policy


def policies(*paths: str) -> list[Object]:
    return [one for path in paths for one in objects((K8S / path).read_text())]


BASE = policies("base/networkpolicy.yaml", "base/raycluster/networkpolicy.yaml")
RUNS = [network_policy(rendered_options(name=name)) for name in ("one", "two")]
ALL = BASE + RUNS


def node(run: str, role: str, cluster: str = "") -> End:
    """A pod of Ray, as the operator labels it, of a run."""
    return pod(
        "esxsim",
        esxsim__run=run,
        ray___io__cluster=cluster or f"{run}-x7k2p",
        ray___io__node_type=role,
        ray___io__is_ray_node="yes",
        app___kubernetes___io__part_of="esxsim",
    )


HEAD, WORKER = node("one", "head"), node("one", "worker")
OTHER = node("two", "head")
SUBMITTER = pod("esxsim", esxsim__run="one", app___kubernetes___io__part_of="esxsim")
FETCH = pod("esxsim", esxsim__run="one-fetch", app___kubernetes___io__part_of="esxsim")
STAYS_HEAD = node("esxsim", "head", "esxsim")
STAYS_WORKER = node("esxsim", "worker", "esxsim")
OPERATOR = pod("kuberay-system", app___kubernetes___io__name="kuberay-operator")
NO_OPERATOR = pod("kuberay-system", app___kubernetes___io__name="other")
PROMETHEUS = pod("monitoring", app___kubernetes___io__name="prometheus")
IMPOSTOR = pod("default", app___kubernetes___io__name="prometheus")
DNS = pod("kube-system", k8s_app="kube-dns")
STRANGER = pod("esxsim", app="else")
OUTSIDE = End(address="52.95.110.1")
TCP, UDP = "TCP", "UDP"

MAY = [
    *((one, two, port) for one, two in ((HEAD, WORKER), (WORKER, HEAD)) for port in (6379, 23456)),
    (WORKER, WORKER, 40001),
    (SUBMITTER, HEAD, 8265),
    (STAYS_WORKER, STAYS_HEAD, 6379),
    (STAYS_HEAD, STAYS_WORKER, 12345),
    *((OPERATOR, HEAD, port) for port in (8265, 52365)),
    (OPERATOR, WORKER, 52365),
    *((PROMETHEUS, one, 8080) for one in (HEAD, WORKER, STAYS_HEAD)),
    *((one, DNS, 53) for one in (HEAD, SUBMITTER, FETCH)),
]
MAY_NOT = [
    *((one, two, 6379) for one, two in ((HEAD, OTHER), (OTHER, HEAD), (WORKER, OTHER))),
    *((STAYS_HEAD, one, 8265) for one in (HEAD, OTHER)),
    (SUBMITTER, OTHER, 8265),
    (SUBMITTER, STAYS_HEAD, 8265),
    *((OPERATOR, HEAD, port) for port in (6379, 10001, 8080)),
    (NO_OPERATOR, HEAD, 8265),
    *((PROMETHEUS, HEAD, port) for port in (8265, 6379, 44217, 44227)),
    (IMPOSTOR, HEAD, 8080),
    *((STRANGER, HEAD, port) for port in (6379, 8080, 8265)),
    (FETCH, HEAD, 8265),
    (HEAD, FETCH, 22),
    (HEAD, DNS, 443),
    *((one, OUTSIDE, 443) for one in (HEAD, WORKER, SUBMITTER, FETCH, STRANGER)),
    (OUTSIDE, HEAD, 8265),
]


@pytest.mark.parametrize(("source", "target", "port"), MAY)
def test_what_must_talk_may(source: End, target: End, port: int) -> None:
    assert allowed(ALL, source, target, port, TCP)


@pytest.mark.parametrize(("source", "target", "port"), MAY_NOT)
def test_what_need_not_talk_may_not(source: End, target: End, port: int) -> None:
    assert not allowed(ALL, source, target, port, TCP)


def test_names_are_looked_up_by_both_protocols() -> None:
    assert allowed(ALL, WORKER, DNS, 53, UDP)
    assert not allowed(ALL, WORKER, OUTSIDE, 53, UDP)


@pytest.mark.parametrize("port", [44217, 44227])
def test_the_monitoring_overlay_opens_ports_of_the_head(port: int) -> None:
    more = ALL + policies("overlays/monitoring/networkpolicy.yaml")
    assert allowed(more, PROMETHEUS, HEAD, port, TCP)
    assert not allowed(more, PROMETHEUS, WORKER, port, TCP)
    assert not allowed(more, IMPOSTOR, HEAD, port, TCP)


def test_the_autoscale_overlay_lets_the_head_ask_the_api_server() -> None:
    more = ALL + policies("overlays/autoscale/networkpolicy.yaml")
    assert allowed(more, STAYS_HEAD, OUTSIDE, 6443, TCP)
    for one in (STAYS_WORKER, HEAD, SUBMITTER):
        assert not allowed(more, one, OUTSIDE, 6443, TCP)


def test_the_s3_overlay_lets_heads_reach_a_store() -> None:
    more = ALL + policies("overlays/s3/networkpolicy.yaml")
    assert allowed(more, HEAD, OUTSIDE, 443, TCP)
    for one in (WORKER, SUBMITTER, FETCH):
        assert not allowed(more, one, OUTSIDE, 443, TCP)


def test_without_policies_all_is_open() -> None:
    """The evaluator can say both."""
    assert allowed([], STRANGER, HEAD, 1, TCP)
    denied = [each for each in BASE if each["metadata"]["name"] == "default-deny"]
    assert not allowed(denied, HEAD, WORKER, 6379, TCP)


def test_overlays_add_no_policy_unseen() -> None:
    found = {str(path.relative_to(K8S)) for path in Path(K8S).rglob("networkpolicy.yaml")}
    seen = {f"overlays/{name}/networkpolicy.yaml" for name in ("monitoring", "autoscale", "s3")}
    seen |= {f"base/{name}networkpolicy.yaml" for name in ("", "raycluster/", "rayjob/")}
    assert found == seen
