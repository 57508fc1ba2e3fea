"""Objects against their schemas: Kubernetes' own, KubeRay's CRDs, and what we use of two more.

CRDs are no JSON Schema: defaults come before `required`, int-or-string and nullable have keys of
their own, and a server drops a field that it does not know, which here is a fault. Rules in CEL and
those of the operator are not in the schema: see policies.py.
"""

from __future__ import annotations

import copy
import gzip
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import kubernetes_validate
import pytest
import yaml
from manifests import CRDS, Object

KUBERNETES = ("1.31", "1.37")
"""The oldest and the newest version that README.md names."""
TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}
TEXT = {"type": "string"}
WORDS = {"type": "object", "additionalProperties": TEXT}
SELECTOR = {"type": "object", "properties": {"matchLabels": WORDS}}


def _spec(required: tuple[str, ...] = (), **properties: Object) -> Object:
    spec = {"type": "object", "properties": properties, "required": list(required)}
    top = {"apiVersion": TEXT, "kind": TEXT, "metadata": {"type": "object"}, "spec": spec}
    return {"type": "object", "properties": top, "required": ["metadata"]}


def _list(required: tuple[str, ...], **properties: Object) -> Object:
    items = {"type": "object", "properties": properties, "required": list(required)}
    return {"type": "array", "items": items}


_QUOTA = {"x-kubernetes-int-or-string": True}
OTHERS: dict[tuple[str, str], Object] = {
    # Prometheus operator: Documentation/api-reference, PodMonitorSpec and PodMetricsEndpoint.
    ("monitoring.coreos.com/v1", "PodMonitor"): _spec(
        ("selector", "podMetricsEndpoints"),
        selector=SELECTOR,
        podTargetLabels={"type": "array", "items": TEXT},
        podMetricsEndpoints=_list(
            (), port=TEXT, interval={"type": "string", "pattern": "^[0-9]+s$"}
        ),
    ),
    # Kueue: reference/kueue.v1beta2.
    ("kueue.x-k8s.io/v1beta2", "ResourceFlavor"): _spec(),
    ("kueue.x-k8s.io/v1beta2", "LocalQueue"): _spec(("clusterQueue",), clusterQueue=TEXT),
    ("kueue.x-k8s.io/v1beta2", "ClusterQueue"): _spec(
        ("resourceGroups",),
        namespaceSelector=SELECTOR,
        resourceGroups=_list(
            ("coveredResources", "flavors"),
            coveredResources={"type": "array", "items": TEXT},
            flavors=_list(
                ("name", "resources"),
                name=TEXT,
                resources=_list(("name", "nominalQuota"), name=TEXT, nominalQuota=_QUOTA),
            ),
        ),
    ),
}


@cache
def crd(kind: str) -> Object:
    """The schema of a kind of ray.io/v1; skips where the CRDs are not at hand."""
    path = CRDS / f"ray.io_{kind.lower()}s.yaml.gz"
    if not path.exists():
        pytest.skip("needs ../shared/data/kuberay-crds")
    with gzip.open(path) as stream:
        loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        read = yaml.load(stream, loader)
    (version,) = [one for one in read["spec"]["versions"] if one["name"] == "v1"]
    schema: Object = version["schema"]["openAPIV3Schema"]
    return schema


def faults(found: Object) -> list[str]:
    """What a server with strict validation would say against an object."""
    version, kind = found["apiVersion"], found["kind"]
    if version == "ray.io/v1":
        return list(crd_faults(crd(kind), found, kind))
    if (version, kind) in OTHERS:
        return list(crd_faults(OTHERS[version, kind], found, kind))
    try:
        for one in KUBERNETES:
            kubernetes_validate.validate(found, one, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{kind}: {'.'.join(map(str, error.path))}: {error.message}"]
    return []


def crd_faults(schema: Object, value: Any, path: str) -> Iterator[str]:
    """What is wrong with a value by the schema of a CRD."""
    if value is None:
        if not schema.get("nullable"):
            yield f"{path}: must not be null"
        return
    if schema.get("x-kubernetes-int-or-string"):
        if isinstance(value, bool) or not isinstance(value, int | str):
            yield f"{path}: must be a whole number or text"
        elif isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
            yield f"{path}: {value!r} is no quantity"
        return
    kind = schema.get("type")
    if kind is not None and (
        not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")
    ):
        yield f"{path}: must be {kind}"
        return
    yield from _bound_faults(schema, value, path)
    if isinstance(value, dict):
        yield from _object_faults(schema, value, path)
    elif isinstance(value, list):
        for at, item in enumerate(value):
            yield from crd_faults(schema.get("items", {}), item, f"{path}[{at}]")


def _object_faults(schema: Object, value: Object, path: str) -> Iterator[str]:
    properties = schema.get("properties", {})
    whole = value | {
        key: copy.deepcopy(one["default"])
        for key, one in properties.items()
        if key not in value and "default" in one
    }
    for key in schema.get("required", []):
        if key not in whole:
            yield f"{path}.{key}: is required"
    rest = schema.get("additionalProperties")
    for key, item in whole.items():
        if key in properties:
            yield from crd_faults(properties[key], item, f"{path}.{key}")
        elif isinstance(rest, dict):
            yield from crd_faults(rest, item, f"{path}.{key}")
        elif properties and not schema.get("x-kubernetes-preserve-unknown-fields"):
            yield f"{path}.{key}: unknown field"


def _bound_faults(schema: Object, value: Any, path: str) -> Iterator[str]:
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path}: {value!r} must be one of {schema['enum']}"
    if "minimum" in schema and value < schema["minimum"]:
        yield f"{path}: {value} is below {schema['minimum']}"
    if "maximum" in schema and value > schema["maximum"]:
        yield f"{path}: {value} is above {schema['maximum']}"
    if "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{path}: {value!r} does not match {schema['pattern']}"
    if len(str(value)) > schema.get("maxLength", 1 << 30):
        yield f"{path}: is longer than {schema['maxLength']}"
