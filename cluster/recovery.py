"""Go on after a process was lost: from the last checkpoint, as `--resume` would; not for ever."""

from __future__ import annotations

import time
from collections.abc import Callable

from cluster.coordinator import Outcome
from cluster.errors import ClusterError, LostError, NoClusterError
from cluster.resumption import Resumption

TRIES = 5
"""So often a run is begun from the same epoch: a host that always dies there ends it."""
Attempt = Callable[[Resumption | None, int], Outcome]
"""Runs from a checkpoint, None for the beginning, having been restarted so often."""


def run(
    attempt: Attempt,
    start: Resumption | None,
    find: Callable[[], Resumption | None],
    say: Callable[[str], None],
) -> Outcome:
    """Run to the end. find: the last checkpoint. Raises ClusterError once it goes no further."""
    restarts, tries = 0, 1
    while True:
        try:
            return attempt(start, restarts)
        except (LostError, NoClusterError) as error:
            if restarts == 0 and isinstance(error, NoClusterError):
                raise
            before, start = _epoch(start), find()
            restarts += 1
            tries = 1 if _epoch(start) > before else tries + 1
            if tries > TRIES:
                message = f"{error} ({TRIES} times in a row after epoch {before}: given up)"
                raise ClusterError(message) from None
            say(f"{error}: going on from epoch {_epoch(start)}")
            time.sleep(2.0 ** (tries - 1))  # a node that was lost may come back


def _epoch(start: Resumption | None) -> int:
    return 0 if start is None else start.standing.epoch
