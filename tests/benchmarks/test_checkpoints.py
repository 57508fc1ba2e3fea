"""What a checkpoint costs: hosts that stand still, work beside them, and reading it back.

scenarios/scale-1000.yaml, with fewer hosts and VMs in the same proportions, after half a day;
shares are of a minute, in which there is one. The goal: under 3 % of a run, in both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cluster_builders import host_set
from measuring import Tables, cpu_s
from test_cluster import scaled

from cluster import checkpoint, standing
from cluster.checkpoint import EVERY_S, RUN_FILE, host_file
from cluster.coordinator import barriers
from cluster.fleet import LocalFleet
from cluster.host_set import Snapshots
from cluster.policy.history import History
from cluster.population import populate
from cluster.standing import Standing
from cluster.tables import Written

HOSTS, VMS = (100, 1000), 10
EPOCHS = 144

pytestmark = pytest.mark.benchmark


@pytest.mark.parametrize("n_hosts", HOSTS)
def test_cost_of_a_checkpoint(tables: Tables, tmp_path: Path, n_hosts: int) -> None:
    loaded = scaled(n_hosts, VMS)
    population = populate(loaded)
    seen, history = standing.blank(loaded, population), History()
    hosts = host_set(loaded, population.hosts)
    for barrier in barriers(population, loaded.scenario, LocalFleet(hosts)):
        for one in barrier.plan.decisions:
            history.add(one)
        seen.add(barrier.report)
        if barrier.epoch >= EPOCHS:
            break
    where = Standing(barrier.epoch, barrier.now, seen, history, Written({}, 0))
    made: list[Any] = []
    stands_s = cpu_s(lambda: made.append(hosts.save()))
    saved: Snapshots = made[0]
    about = checkpoint.identity(loaded.digest)

    def write() -> None:
        contents = [(RUN_FILE, standing.pack(where))]
        contents += [(host_file(host), data) for host, data in saved.hosts.items()]
        checkpoint.write(tmp_path, where.epoch, about, contents)

    beside_s = cpu_s(write)
    (found,) = checkpoint.candidates(tmp_path, about, [])

    def read() -> None:
        standing.unpack(found.read(RUN_FILE), loaded, population)
        hosts.restore(found.hosts(hosts.ids()), where.off())

    read_s = cpu_s(read)
    size = sum(path.stat().st_size for path in found.path.iterdir())
    row: dict[str, str | int | float] = {"hosts": n_hosts, "VMs": n_hosts * VMS}
    row |= {"size, MB": f"{size / 1e6:.1f}"}
    row |= {"hosts stand still, % of a minute": f"{100 * stands_s / EVERY_S:.2f}"}
    row |= {"work beside them, % of a minute": f"{100 * beside_s / EVERY_S:.2f}"}
    row |= {"reading / a host's save": read_s / stands_s}
    tables.add("A checkpoint: scale-1000 after half a day, 1/1024", row)
