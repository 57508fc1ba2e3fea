"""Whatever is killed, a run ends with the same result or a clear error, and it never hangs.

Dozens of faults of seeded kinds at seeded moments: actors, any worker, the raylet, the head's GCS
and the driver itself of a cluster that the command started, over as many runs as that takes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from chaos import BOUND_S, Voyage, assert_same, killed, scenario
from cluster_builders import manifest_of

from cluster import execute

FAULTS, PER_RUN = 36, 12
KINDS = (
    *["ray::HostActor"] * 4,
    *["ray::CoordinatorActor"] * 2,
    *["ray::"] * 2,
    *["raylet/raylet", "gcs/gcs_server", "driver", "stop"],
)
pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc").exists(), reason="looks at processes in Linux's /proc"),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    data = folder / "no-data"
    options = execute.Options(scenario(folder), folder / "out", None, None, None, False, data)
    outcome, out = execute.run(options)
    report = outcome.report
    assert report["migrations"]["count"] > 5 and report["failures"]["vms_restarted"] > 5
    return out


def faults(random: Random, most: int) -> Callable[[Voyage, int], str | None]:
    """Draws the next fault, waits as long as it says, and does it."""

    def next_fault(voyage: Voyage, driver: int) -> str | None:
        if len(voyage.faults) >= most:
            return None
        time.sleep(random.uniform(0, 1.5))
        kind = random.choice(KINDS)
        if kind == "stop":
            os.kill(driver, signal.SIGTERM)
            return kind
        for _ in range(100):  # between two attempts there may be none
            told = killed(kind, driver, random)
            if told is not None:
                return told
            time.sleep(0.1)
        return None

    return next_fault


POISONED = """
import os
from cluster import ray_environment
ray_environment.prepare(own_cluster=True)
from cluster import actors, cli

class Poisoned(actors.HostActor):
    def run(self, orders, first_epoch, *more):
        if first_epoch >= 60 and any(host == 3 for host in self._hosts.ids()):
            os._exit(1)
        return super().run(orders, first_epoch, *more)

actors.HostActor = Poisoned
cli.main()
"""


def test_a_host_that_always_dies_ends_the_run_with_the_reason(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["run", str(scenario(tmp_path)), "--out", str(out), "--checkpoint-every", "0.2"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    found = subprocess.run(
        [sys.executable, "-c", POISONED, *arguments],
        capture_output=True,
        text=True,
        env=clean,
        timeout=2 * BOUND_S,
    )
    assert found.returncode == 1 and "Traceback" not in found.stderr
    last = found.stderr.splitlines()[-1]
    assert "Poisoned on 127.0.0.1 died (5 times in a row after epoch" in last
    manifest = manifest_of(out)
    assert manifest["partial"] and "5 times in a row" in manifest["reason"]
    assert list((out / "checkpoints").iterdir())  # for when the host has been mended


def test_dozens_of_faults_do_not_show(whole: Path, tmp_path: Path) -> None:
    done: Counter[str] = Counter()
    runs = 0
    while done.total() < FAULTS:
        runs += 1
        voyage = Voyage(scenario(tmp_path), tmp_path / f"run-{runs}", ["--hosts-per-actor", "2"])
        voyage.sail(faults(Random(runs), min(PER_RUN, FAULTS - done.total())))
        assert_same(voyage.out, whole)
        done.update(voyage.faults)
        print(f"run {runs}: {voyage.faults}, ended {[code for code, _ in voyage.endings]},")
        print(f"  restarts of the last command: {manifest_of(voyage.out)['restarts']}")
    assert len(done) >= 6, done
