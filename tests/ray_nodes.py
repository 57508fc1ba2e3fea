"""Machines of a Ray cluster on this one: network namespaces, joined by a bridge in one more.

Each node has an address, processes, a /tmp/ray and a /dev/shm of its own; node 1 is the head. Needs
root and Debian's iproute2. All of it is gone afterwards.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

FAKE_HEAD_NODE_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
RAY = str(Path(sys.executable).with_name("ray"))
NETWORK = "198.51.100."
"""For documentation (RFC 5737): nobody's."""
PORT = 6379
START_S = 60.0
DETECTION = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
"""Of the head alone: a node that is lost is seen within seconds."""
FAKE_NODES = {
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
}
"""As ray.cluster_utils.AutoscalingCluster sets it, which would stop every Ray of this machine."""
PRIVATE = "mount -t tmpfs tmpfs /tmp/ray && mount -t tmpfs -o size=512m tmpfs /dev/shm && exec "


@functools.cache
def why_not() -> str | None:
    """Why this machine cannot do it, or None."""
    if shutil.which("ip") is None or shutil.which("nsenter") is None:
        return "needs ip (iproute2) and nsenter (util-linux)"
    name = f"esxsim-{os.getpid()}-try"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode == 0:
        subprocess.run(["ip", "netns", "delete", name], check=False)
        return None
    return f"cannot make network namespaces: {made.stderr.strip()}"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Nodes:
    """A head and workers; `token` is what all who connect must show."""

    def __init__(self, folder: Path, n_nodes: int, scales: bool = False) -> None:
        """scales: the head has no CPU, and Ray's autoscaler brings nodes of two beside it."""
        self._folder, self._scales = folder, scales
        self._name = f"esxsim-{os.getpid()}-{secrets.token_hex(2)}"
        self._bridge = f"{self._name}-0"
        self.ids = range(1, n_nodes + 1)
        self.token = secrets.token_hex(32)
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._was_cut: set[int] = set()

    @property
    def address(self) -> str:
        return f"{NETWORK}1:{PORT}"

    @property
    def environment(self) -> dict[str, str]:
        """What a driver needs."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    @property
    def prefix(self) -> list[str]:
        """Before a command that is to run on the head."""
        return ["nsenter", "-t", str(self._processes[1].pid), "-n", "-m", f"--wd={self._folder}"]

    def network(self) -> None:
        """Make the namespaces and their links."""
        ip("netns", "add", self._bridge)
        ip("-n", self._bridge, "link", "add", "br0", "type", "bridge")
        ip("-n", self._bridge, "link", "set", "br0", "up")
        for node in self.ids:
            space, port = self._space(node), f"v{node}"
            ip("netns", "add", space)
            ends = ["eth0", "netns", space, "type", "veth", "peer", "name", port]
            ip("link", "add", "name", *ends, "netns", self._bridge)
            ip("-n", self._bridge, "link", "set", port, "master", "br0", "up")
            ip("-n", space, "addr", "add", f"{NETWORK}{node}/24", "dev", "eth0")
            for link in ("eth0", "lo"):
                ip("-n", space, "link", "set", link, "up")

    def start(self, node: int) -> None:
        """Start Ray on a node; returns once it is a part of the cluster."""
        Path("/tmp/ray").mkdir(exist_ok=True)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        clean |= self.environment | {"RAY_USAGE_STATS_ENABLED": "0"}
        command = f"{RAY} start --node-ip-address={NETWORK}{node} --num-cpus=1 --block"
        command += " --object-store-memory=100000000"
        if node == 1:
            clean |= DETECTION
            command += f" --head --port={PORT} --include-dashboard=false"
        else:
            command += f" --address={self.address}"
        if self._scales:
            command = command.replace("--num-cpus=1", "--num-cpus=0") + self._autoscaling()
            clean |= FAKE_NODES
        space = ["ip", "netns", "exec", self._space(node), "unshare", "--mount", "sh", "-c"]
        said = self._folder / f"node-{node}.log"
        with said.open("wb") as log:
            self._processes[node] = subprocess.Popen(
                [*space, PRIVATE + command], env=clean, stdout=log, stderr=log
            )
        give_up_s = time.monotonic() + START_S
        while "Ray runtime started" not in said.read_text():
            assert time.monotonic() < give_up_s, said.read_text()
            time.sleep(0.1)

    def _autoscaling(self) -> str:
        """Nodes that Ray's own fake provider starts beside the head."""
        node = {"node_config": {}, "min_workers": 0}
        lists = ("initialization_commands", "setup_commands", "cluster_synced_files")
        lists += ("head_setup_commands", "worker_setup_commands")
        lists += ("head_start_ray_commands", "worker_start_ray_commands")
        module = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
        provider = {"type": "external", "module": module, "launch_multiple": True}
        types = {"ray.head.default": node | {"resources": {"CPU": 0}, "max_workers": 0}}
        types |= {"worker": node | {"resources": {"CPU": 2}, "max_workers": 4}}
        config = {
            "cluster_name": "fake",
            "max_workers": 4,
            "provider": provider | {"head_node_id": FAKE_HEAD_NODE_ID},
            "available_node_types": types,
            "head_node_type": "ray.head.default",
            "upscaling_speed": 20,
            "idle_timeout_minutes": 0.2,
            **{name: {} for name in ("auth", "docker", "file_mounts")},
            **{name: [] for name in lists},
        }
        path = self._folder / "autoscaling.json"
        path.write_text(json.dumps(config))
        return f" --autoscaling-config={path}"

    def pids(self, node: int, word: str) -> list[int]:
        """Processes on a node whose command has this word."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self._space(node)], check=True, capture_output=True, text=True
        )
        found = []
        for pid in map(int, listed.stdout.split()):
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace")
                if word in command and "from cluster.cli" not in command:
                    found.append(pid)
        return found

    def kill(self, node: int, word: str) -> int:
        """Kill -9 the processes on a node whose command has this word; how many."""
        pids = self.pids(node, word)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(pids)

    def link(self, node: int, state: str) -> None:
        """Cut the node off the network, or heal that: down, up."""
        ip("-n", self._bridge, "link", "set", f"v{node}", state)
        if state == "down":
            self._was_cut.add(node)

    def is_whole(self, node: int) -> bool:
        """Whether a node is a part of the cluster for sure: one that was cut off may yet find that
        it was given up, and end."""
        return node not in self._was_cut and bool(self.pids(node, "raylet/raylet"))

    def revive(self, node: int) -> None:
        """Begin a node again, whatever is left of it."""
        self.link(node, "up")
        self._was_cut.discard(node)
        self._end(node)
        self.start(node)

    def end(self) -> None:
        """Kill all, and take the namespaces down."""
        for node in self.ids:
            self._end(node)
        for space in [*map(self._space, self.ids), self._bridge]:
            subprocess.run(["ip", "netns", "delete", space], check=False, capture_output=True)

    def _end(self, node: int) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            while self.kill(node, ""):
                time.sleep(0.1)
        if node in self._processes:
            self._processes.pop(node).wait()

    def _space(self, node: int) -> str:
        return f"{self._name}-{node}"


@contextlib.contextmanager
def cluster(folder: Path, n_nodes: int = 3, scales: bool = False) -> Iterator[Nodes]:
    """A cluster that runs while inside. scales: see Nodes."""
    nodes = Nodes(folder, n_nodes, scales)
    try:
        nodes.network()
        for node in nodes.ids:
            nodes.start(node)
        yield nodes
    finally:
        nodes.end()
