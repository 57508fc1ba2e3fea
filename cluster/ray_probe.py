"""Whether the head of a Ray cluster will have us, asked before Ray does.

Ray itself tries a wrong token or address for up to 40 s and fills the screen with its log. One
call tells all of it in milliseconds: what the cluster says of itself, read without a token, then
with ours.
"""

from __future__ import annotations

import json
import os
import platform
import socket
from collections.abc import Sequence
from typing import Any

import grpc
import ray
from ray._private.authentication.authentication_utils import is_token_auth_enabled
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from cluster import ray_environment
from cluster.errors import NoClusterError, RefusedError

_api: Any = ray  # for what carries no types
_messages: Any = gcs_service_pb2
_stubs: Any = gcs_service_pb2_grpc
_NO_TOKEN = "the Ray cluster at {} asks for no token: whoever reaches its ports runs code on it"


def check(address: str) -> str | None:
    """Ask the head at `address` (HOST:PORT, or auto); a warning, or None.

    Raises RefusedError or NoClusterError where Ray could not be used there.
    """
    try:
        head = _api._private.services.canonicalize_bootstrap_address_or_die(address)
    except (ConnectionError, RuntimeError) as error:
        raise NoClusterError(
            f"no Ray cluster at {address}: none runs on this machine ({_line(error)})"
        ) from None
    shown = head if address in (head, "auto") else f"{head} (as Ray reads {address})"
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return None  # Ray's certificates are Ray's to use
    # As Ray does: not through a proxy.
    with grpc.insecure_channel(head, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            token = _token(channel, shown)
            _same_versions(shown, _facts(channel, token))
            _has_node_here(shown, _nodes(channel, token))
        except grpc.RpcError as error:
            raise _unusable(shown, error) from None
    return _NO_TOKEN.format(shown) if token is None else None


def _token(channel: Any, head: str) -> str | None:
    """The token that the head accepts, None where it asks for none."""
    try:
        _facts(channel, None)
    except grpc.RpcError as error:
        if error.code() != grpc.StatusCode.UNAUTHENTICATED:
            raise
    else:
        return None
    if not is_token_auth_enabled():
        raise RefusedError(
            f"the Ray cluster at {head} asks for a token: {ray_environment.GIVE_TOKEN}"
        )
    try:
        token = ray_environment.find_token()
    except ValueError as error:
        raise RefusedError(str(error)) from None
    if token is None:
        raise RefusedError(f"no token for the Ray cluster at {head}: {ray_environment.GIVE_TOKEN}")
    return token


def _shown(token: str | None) -> list[tuple[str, str]]:
    return [] if token is None else [("authorization", f"Bearer {token}")]


def _facts(channel: Any, token: str | None) -> dict[str, str]:
    """What the head wrote down about its cluster: ray_version, python_version."""
    stub = _stubs.InternalKVGcsServiceStub(channel)
    wanted = _messages.InternalKVGetRequest(namespace=b"cluster", key=b"CLUSTER_METADATA")
    reply = stub.InternalKVGet(wanted, metadata=_shown(token), timeout=ray_environment.CONNECT_S)
    found = json.loads(reply.value or b"{}")
    return found if isinstance(found, dict) else {}


def _nodes(channel: Any, token: str | None) -> list[str]:
    """Addresses of the nodes that are alive."""
    stub = _stubs.NodeInfoGcsServiceStub(channel)
    wanted = _messages.GetAllNodeInfoRequest()
    reply = stub.GetAllNodeInfo(wanted, metadata=_shown(token), timeout=ray_environment.CONNECT_S)
    return [node.node_manager_address for node in reply.node_info_list if node.state == 0]


def _same_versions(head: str, facts: dict[str, str]) -> None:
    """Ray's own rule, in one line."""
    ours = {"ray_version": ray.__version__, "python_version": platform.python_version()}
    theirs = {name: str(facts.get(name, "?")) for name in ours}
    try:
        _api._private.utils.check_version_info(theirs, "", raise_on_mismatch=True)
    except RuntimeError:
        raise RefusedError(
            f"the Ray cluster at {head} runs {_versions(theirs)}, and this is {_versions(ours)}: "
            "they must be the same"
        ) from None


def _versions(facts: dict[str, str]) -> str:
    return f"Ray {facts['ray_version']} with Python {facts['python_version']}"


def _has_node_here(head: str, addresses: Sequence[str]) -> None:
    """Ray needs a node of the cluster on the driver's machine, and waits a minute for one."""
    if addresses and not any(map(_is_ours, addresses)):
        raise RefusedError(
            f"this machine is no node of the Ray cluster at {head}: make it one "
            f"(ray start --address=HEAD:PORT), or use esxsim submit"
        )


def _is_ours(address: str) -> bool:
    """Whether this machine has the address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def _unusable(head: str, error: grpc.RpcError) -> Exception:
    code = error.code()
    if code == grpc.StatusCode.UNAUTHENTICATED:
        return RefusedError(f"the Ray cluster at {head} refuses the token: it has another one")
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        limit = ray_environment.CONNECT_S
        return NoClusterError(f"no Ray cluster at {head}: no answer within {limit:.0f} s")
    return RefusedError(
        f"what answers at {head} is no head of a Ray cluster: its port is 6379 unless "
        "ray start --port says another (the dashboard's is for esxsim submit)"
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
