"""Network policies evaluated: may one pod open a connection to another?

By the rules of networking.k8s.io/v1: a pod that no policy of a direction selects is open in it; one
that some select is open to what any of them allows. Both ends must allow a connection.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from manifests import Object


@dataclass(frozen=True)
class End:
    """A pod, or, with an address alone, what is outside the cluster."""

    namespace: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    address: str = "10.1.2.3"


def pod(namespace: str, **labels: str) -> End:
    """A pod; in keys of labels, `_` is `-` and `__` is `/` and `___` a dot."""
    names = {
        key.replace("___", ".").replace("__", "/").replace("_", "-"): value
        for key, value in labels.items()
    }
    return End(namespace, tuple(sorted(names.items())))


def allowed(policies: Iterable[Object], source: End, target: End, port: int, protocol: str) -> bool:
    """Whether `source` may connect to a port of `target`."""
    found = list(policies)
    return _open(found, source, target, port, protocol, "Egress") and _open(
        found, target, source, port, protocol, "Ingress"
    )


def _open(
    policies: list[Object], own: End, other: End, port: int, protocol: str, direction: str
) -> bool:
    selecting = [
        one["spec"]
        for one in policies
        if own.namespace == one["metadata"]["namespace"]
        and direction in one["spec"]["policyTypes"]
        and _selects(one["spec"]["podSelector"], dict(own.labels))
    ]
    if not selecting:
        return True
    rules = [rule for spec in selecting for rule in spec.get(direction.lower(), [])]
    return any(_permits(rule, own, other, port, protocol, direction) for rule in rules)


def _permits(rule: Object, own: End, other: End, port: int, protocol: str, direction: str) -> bool:
    ports = rule.get("ports")
    if ports and not any(
        one.get("protocol", "TCP") == protocol and one.get("port", port) == port for one in ports
    ):
        return False
    peers = rule.get("to" if direction == "Egress" else "from")
    return not peers or any(_is_peer(one, own, other) for one in peers)


def _is_peer(peer: Object, own: End, other: End) -> bool:
    if "ipBlock" in peer:
        network = ipaddress.ip_network(peer["ipBlock"]["cidr"])
        return ipaddress.ip_address(other.address) in network
    if not other.namespace:
        return False
    if "namespaceSelector" in peer:
        of_namespace = {"kubernetes.io/metadata.name": other.namespace}
        if not _selects(peer["namespaceSelector"], of_namespace):
            return False
    elif other.namespace != own.namespace:
        return False
    return _selects(peer.get("podSelector", {}), dict(other.labels))


def _selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    assert selector.keys() <= {"matchLabels"}, selector
    return selector.get("matchLabels", {}).items() <= labels.items()
