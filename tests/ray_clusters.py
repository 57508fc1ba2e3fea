"""A Ray cluster of one node as users start one: `ray start --head`, with token and dashboard."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event

ROOT = Path(__file__).parents[1]
PROC = Path("/proc")
START_S = 60.0


@dataclass(frozen=True)
class Cluster:
    """On the loopback device. head: for `run --address`. dashboard: for jobs."""

    folder: Path
    token: str
    head: str
    dashboard: str

    @property
    def results(self) -> Path:
        """Where jobs leave what they make."""
        return self.folder / "results"

    @property
    def processes(self) -> dict[int, str]:
        """Ids and command lines of all that belong to it."""
        found = {}
        for entry in PROC.iterdir():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes()
                mine = words + (entry / "environ").read_bytes()
                if entry.name.isdecimal() and os.fsencode(self.folder) in mine:
                    found[int(entry.name)] = words.replace(b"\0", b" ").decode("utf-8", "replace")
        return found


def _free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(n)]
        return [one.getsockname()[1] for one in sockets]


def _answers(dashboard: str) -> bool:
    """Whether it is up; calls wait for the agent that starts jobs."""
    try:
        with urllib.request.urlopen(f"{dashboard}/api/gcs_healthz", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@contextlib.contextmanager
def started(*, token: bool = True, path: Path | None = None) -> Iterator[Cluster]:
    """A cluster that runs while inside; nothing of it is left.

    path: the folder of programs that its jobs find, instead of ours.
    """
    # Not pytest's folder: the path of a socket in it may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="esx-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        head, dashboard, *agents = _free_ports(7)
        secret = secrets.token_hex(32)
        found = Cluster(folder, secret, f"127.0.0.1:{head}", f"http://127.0.0.1:{dashboard}")
        flags = ("agent-listen-port", "agent-grpc-port")
        options = [f"--dashboard-{flag}={port}" for flag, port in zip(flags, agents, strict=False)]
        options += [f"--runtime-env-agent-port={agents[2]}", f"--metrics-export-port={agents[3]}"]
        options += [f"--ray-client-server-port={agents[4]}", "--num-cpus=2", "--block", "--head"]
        options += [f"--port={head}", "--node-ip-address=127.0.0.1", f"--temp-dir={folder}/ray"]
        options += [f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"]
        environment = {key: value for key, value in os.environ.items() if key[:4] != "RAY_"} | {
            "PATH": f"{path or Path(sys.executable).parent}:/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # 127.0.0.1 is meant
            "RAY_USAGE_STATS_ENABLED": "0",
            "ESXSIM_RESULTS": str(found.results),
        }
        environment |= {"RAY_AUTH_MODE": "token" if token else "disabled", "RAY_AUTH_TOKEN": secret}
        log = folder / "start.log"
        code = "import sys; from ray.scripts.scripts import main; sys.exit(main())"
        with log.open("wb") as printed:
            process = subprocess.Popen(
                [sys.executable, "-c", code, "start", *options, "--disable-usage-stats"],
                stdout=printed,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        try:
            waited = Event()
            for _ in range(int(START_S / 0.2)):
                if _answers(found.dashboard):
                    break
                assert process.poll() is None, log.read_text()
                waited.wait(0.2)
            else:
                raise AssertionError(f"no cluster within {START_S} s: {log.read_text()}")
            yield found
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            for pid in found.processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
