"""A connection to Ray: a cluster of our own, or one that exists; and what Ray's errors mean."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from typing import Any

import ray

from cluster import ray_probe
from cluster.errors import LostError, NoClusterError
from cluster.log import LOG
from hostsim.jit import CACHE_VARIABLE

_api: Any = ray  # for what carries no types
POLL_S = 0.25
COME_S = 600.0
"""How long nodes may take to come."""


def cpus() -> int:
    return int(_api.cluster_resources().get("CPU", 1))


@contextlib.contextmanager
def having(n_cpus: int | None) -> Iterator[None]:
    """While inside, the cluster's autoscaler keeps nodes with so many CPUs, which are there when it
    begins; None: it is asked for nothing. Actors that ask for no CPU bring no node by themselves.

    Raises NoClusterError where they do not come.
    """
    if n_cpus is None:
        yield
        return
    from ray.autoscaler.sdk import request_resources

    request_resources(num_cpus=n_cpus)
    try:
        give_up_s = time.monotonic() + COME_S
        while cpus() < n_cpus:
            if time.monotonic() > give_up_s:
                there = f"{cpus()} of {n_cpus} CPUs are there after {COME_S:.0f} s"
                raise NoClusterError(f"--cpus: {there}: none came by itself")
            time.sleep(POLL_S)
        yield
    finally:
        with contextlib.suppress(ray.exceptions.RayError):
            request_resources(num_cpus=0)


def nodes_with_cpus() -> dict[str, float]:
    """CPUs of the nodes that are alive and have some, by id; of all where none has any.

    A head that has been given none is for the coordinator alone.
    """
    nodes = {
        str(node["NodeID"]): float(node["Resources"].get("CPU", 0))
        for node in _api.nodes()
        if node["Alive"]
    }
    some = {node: n for node, n in nodes.items() if n > 0}
    return some or dict.fromkeys(nodes, 1.0)


def cause_of(error: Exception) -> Exception:
    """What went wrong in the process where it did; LostError where that is no more."""
    while isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, Exception):
        error = error.cause
    if isinstance(error, ray.exceptions.RayError):
        said = " ".join(str(error).split())
        # Of an actor that died, which one and where; the rest is for who debugs Ray.
        who = re.search(r"class_name: (\w+).* ip: ([0-9a-f.:]+)", said)
        what = f"{who[1]} on {who[2]} died" if who else f"{type(error).__name__}: {said[:200]}"
        return LostError(f"a process of the run was lost: {what}")
    return error


def got(calls: Any) -> Any:
    """What calls return. Raises what they raised, or LostError."""
    try:
        return ray.get(calls)
    except ray.exceptions.RayError as error:
        raise cause_of(error) from None


def _start_less() -> None:
    """Have a session of our own start without what only shows a cluster to people.

    Ray has no options for it: the autoscaler, which would add nodes; the collector of logs, which
    we do not show; and a dashboard's process although we want none, for which Ray waits. They took
    a third of its start. A version of Ray that heeds none of this starts them, and a test says so.
    """
    internals = _api._private
    given = internals.parameter.RayParams

    def parameters(*values: Any, **named: Any) -> Any:
        found = given(*values, **named)
        found.no_monitor, found.include_log_monitor = True, False
        return found

    internals.parameter.RayParams = parameters
    internals.services.start_api_server = lambda *values, **named: ("", None)
    # What it would import to see whether its agent could serve web pages takes as long as Ray.
    internals.utils.get_dashboard_dependency_error = lambda: ImportError("not wanted")


@contextlib.contextmanager
def session(
    address: str | None, starting: contextlib.AbstractContextManager[None]
) -> Iterator[dict[str, Any]]:
    """A connection to Ray: a cluster of our own on this machine, or the one at `address`.

    Our own listens on the loopback device only, and asks for the token that
    `ray_environment.prepare` made before Ray was imported. Ray starts inside `starting`. Yields
    facts of the cluster. Raises NoClusterError, or RefusedError where the address is wrong; what
    Ray raises inside becomes LostError.
    """
    internals = _api._private
    # Or Ray makes an exit of SIGTERM while it starts, and what it had started stays for a minute.
    internals.utils.set_sigterm_handler = lambda handler: None
    # It prints to stdout, which is the report's; that a process was lost is ours to say.
    internals.worker.listen_error_messages = lambda worker, stopped: None
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        options |= {"address": "local", "include_dashboard": False}
        options |= {"_node_ip_address": "127.0.0.1"}
        _start_less()
    else:
        options |= {"address": address}
        warning = ray_probe.check(address)
        if warning is not None:
            LOG.warning("%s", warning)
    cache = os.environ.get(CACHE_VARIABLE)
    if cache is not None:
        options["runtime_env"] = {"env_vars": {CACHE_VARIABLE: cache}}
    try:
        try:
            with starting:
                ray.init(**options)
            alive = sum(node["Alive"] for node in _api.nodes())
            facts = {"ray": ray.__version__, "nodes": alive, "cpus": cpus()}
        except Exception as error:  # of any kind: where a process dies meanwhile, a bare one
            where = "on this machine" if address is None else f"at {address}"
            why = " ".join(str(error).split())
            raise NoClusterError(f"no Ray cluster {where}: {why}") from error
        yield facts
    except ray.exceptions.RayError as error:
        raise cause_of(error) from None
    finally:
        ray.shutdown()
