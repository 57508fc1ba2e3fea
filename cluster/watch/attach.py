"""How another process finds a run on its Ray cluster: its coordinator has a name there.

The name is that of the run (`live.run_id`); a second run of the same name gets a number after it.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import ray
from ray.util import list_named_actors

from cluster import ray_session
from cluster.coordinator import Progress
from cluster.errors import ClusterError

NAMESPACE = "esxsim"
ANSWER_S = 30.0
"""How long a coordinator may take to answer."""


def start(actor: Any, run: str, options: dict[str, Any], *arguments: Any) -> Any:
    """Start a coordinator, by Ray's class of its actor, under the first name that is free."""
    for n in itertools.count(1):
        name = run if n == 1 else f"{run}-{n}"
        with contextlib.suppress(ray.exceptions.ActorAlreadyExistsError):
            return actor.options(name=name, namespace=NAMESPACE, **options).remote(*arguments)
    raise AssertionError("numbers do not end")


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """A connection to a cluster that exists, to look on. See ray_session.session."""
    with ray_session.session(address, contextlib.nullcontext()):
        yield


def runs() -> list[str]:
    """Names of the runs that go on, sorted."""
    named = list_named_actors(all_namespaces=True)
    return sorted(one["name"] for one in named if one["namespace"] == NAMESPACE)


def progress(name: str) -> tuple[Progress | None, bool]:
    """How far a run is, None before its first barrier; and whether it still goes on."""
    try:
        coordinator: Any = ray.get_actor(name, NAMESPACE)
        told: Progress | None = ray.get(coordinator.seen.remote(), timeout=ANSWER_S)
    except (ValueError, ray.exceptions.RayActorError):
        return None, False
    except ray.exceptions.GetTimeoutError as error:
        raise ClusterError(f"{name} does not answer") from error
    return told, True
