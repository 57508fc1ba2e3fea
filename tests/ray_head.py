"""A Ray cluster of one node, started as a user does, with an exporter for Prometheus."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

START_S = 60


@dataclass(frozen=True)
class Head:
    """address: HOST:PORT. metrics: URL of the exporter. environment: of those who connect."""

    address: str
    metrics: str
    environment: dict[str, str]


def _free_ports(n: int) -> list[int]:
    with ExitStack() as held:
        servers = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(n)]
        return [server.getsockname()[1] for server in servers]


@contextmanager
def started(cpus: int = 2) -> Iterator[Head]:
    """The head, until the end; it listens on the loopback device, and asks for a token."""
    port, metrics, client, agent, agent_grpc = _free_ports(5)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = clean | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "5" * 64,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_metrics_report_interval_ms": "1000",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    folder = Path(tempfile.mkdtemp(prefix="esxsim-"))  # a socket's path is short
    ports = {
        "port": port,
        "metrics-export-port": metrics,
        "ray-client-server-port": client,
        "dashboard-agent-listen-port": agent,
        "dashboard-agent-grpc-port": agent_grpc,
    }
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    command += ["--include-dashboard=false", f"--num-cpus={cpus}", f"--temp-dir={folder}"]
    command += ["--node-ip-address=127.0.0.1", *(f"--{one}={at}" for one, at in ports.items())]
    with (
        (folder / "started").open("wb") as said,
        subprocess.Popen(
            command, env=environment, stdout=said, stderr=said, start_new_session=True
        ) as process,
    ):
        try:
            give_up_s = time.monotonic() + START_S
            while b"Ray runtime started" not in (folder / "started").read_bytes():
                assert process.poll() is None, (folder / "started").read_text()
                assert time.monotonic() < give_up_s, (folder / "started").read_text()
                time.sleep(0.1)
            yield Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{metrics}/metrics", environment)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(START_S)
    shutil.rmtree(folder, ignore_errors=True)
