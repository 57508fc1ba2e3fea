"""An API server as far as `esxsim k8s` asks it, with a kubeconfig that leads to it.

It keeps objects by kind and name, refuses what is there already, plays a RayJob's states one after
the other to whoever watches, and streams logs and the output of commands as a kubelet does. It asks
for a token, so what shows it can be found.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import yaml
from aiohttp import WSMsgType, web
from http_in_thread import in_thread

TOKEN = "do-not-show-this-token"
KINDS = {
    "configmaps": ("v1", "ConfigMap"),
    "pods": ("v1", "Pod"),
    "networkpolicies": ("networking.k8s.io/v1", "NetworkPolicy"),
    "rayjobs": ("ray.io/v1", "RayJob"),
}
Object = dict[str, Any]


class FakeApi:
    """The server's state, which a test sets up and looks at."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Object] = {}
        self.requests: list[tuple[str, str]] = []
        self.made: list[tuple[str, Object]] = []
        """Resource and body of what was created."""
        self.refuse: dict[tuple[str, str], tuple[int, str]] = {}
        """(method, resource) -> status and message of the answer."""
        self.states: list[Object] = []
        """What the status of a RayJob will be, one after the other, while it is watched."""
        self.logs: dict[str, bytes] = {}
        self.output: Callable[[list[str]], tuple[bytes, bytes, int]] = lambda words: (b"", b"", 0)
        """stdout, stderr and exit code of a command in a pod."""
        self.commands: list[list[str]] = []
        self.cuts = 0
        """How often a log that is followed breaks off in the middle, and a watch is forgotten."""
        self.pod_phase = "Running"
        self.version = 1

    def add(self, resource: str, found: Object) -> None:
        """Put an object there."""
        self.version += 1
        version, kind = KINDS[resource]
        found.setdefault("apiVersion", version)
        found.setdefault("kind", kind)
        found["metadata"]["resourceVersion"] = str(self.version)
        self.objects[resource, found["metadata"]["name"]] = found

    def job(self, name: str, **status: Any) -> None:
        """A RayJob with this status."""
        self.add("rayjobs", {"metadata": {"name": name}, "spec": {}, "status": status})

    def submitter(
        self, run: str, name: str, log: bytes, at: int = 1, phase: str = "Running"
    ) -> None:
        """A pod that repeats what a run says."""
        labels = {"esxsim/run": run, "batch.kubernetes.io/job-name": run}
        created = f"2026-01-01T00:00:{at:02d}Z"
        metadata = {"name": name, "labels": labels, "creationTimestamp": created}
        self.add("pods", {"metadata": metadata, "spec": PODS_SPEC, "status": {"phase": phase}})
        self.logs[name] = log

    def named(self, resource: str) -> list[str]:
        """Names of the objects of a resource."""
        return [name for kind, name in self.objects if kind == resource]


PODS_SPEC: Object = {"containers": [{"name": "c", "image": "i"}]}
PATHS = re.compile(
    r"/(?:api/v1|apis/[a-z0-9.]+/v[0-9]\w*)/namespaces/(?P<namespace>[^/]+)/(?P<resource>[a-z]+)"
    r"(?:/(?P<name>[^/]+)(?:/(?P<sub>[a-z]+))?)?"
)


def answer(status: int, message: str) -> web.Response:
    return web.json_response({"kind": "Status", "message": message, "code": status}, status=status)


async def serve(api: FakeApi, request: web.Request) -> web.StreamResponse:
    if request.headers.get("Authorization") != f"Bearer {TOKEN}":
        return answer(401, "Unauthorized")
    found = PATHS.fullmatch(request.path)
    if found is None:
        return answer(404, "the server could not find the requested resource")
    resource, name, sub = found["resource"], found["name"], found["sub"]
    api.requests.append((request.method, request.path_qs))
    if (request.method, resource) in api.refuse:
        return answer(*api.refuse[request.method, resource])
    if resource not in KINDS:
        return answer(404, "the server could not find the requested resource")
    if request.method == "POST":
        return create(api, resource, await request.json())
    if name is None:
        return await listed(api, resource, request)
    if (resource, name) not in api.objects:
        return answer(404, f'{resource} "{name}" not found')
    if sub == "log":
        return await log(api, name, request)
    if sub == "exec":
        return await execute(api, request)
    if request.method == "DELETE":
        del api.objects[resource, name]
        return web.json_response({"kind": "Status", "status": "Success"})
    return web.json_response(api.objects[resource, name])


def create(api: FakeApi, resource: str, body: Object) -> web.Response:
    name = body["metadata"]["name"]
    if (resource, name) in api.objects:
        return answer(409, f'{resource} "{name}" already exists')
    api.made.append((resource, body))
    if resource == "pods":
        body["status"] = {"phase": api.pod_phase}
    api.add(resource, body)
    return web.json_response(body, status=201)


async def listed(api: FakeApi, resource: str, request: web.Request) -> web.StreamResponse:
    if request.query.get("watch") in ("true", "True", "1"):
        if ("GET", f"{resource}?watch") in api.refuse:
            return answer(*api.refuse["GET", f"{resource}?watch"])
        return await watched(api, request)
    wanted = dict(
        one.split("=") for one in request.query.get("labelSelector", "").split(",") if one
    )
    items = [
        found
        for (kind, _), found in api.objects.items()
        if kind == resource and wanted.items() <= found["metadata"].get("labels", {}).items()
    ]
    version, kind = KINDS[resource]
    return web.json_response(
        {"apiVersion": version, "kind": f"{kind}List", "metadata": {}, "items": items}
    )


async def watched(api: FakeApi, request: web.Request) -> web.StreamResponse:
    """The states to come, each an event; the last ends the watch as a timeout would."""
    (field, name) = request.query["fieldSelector"].split("=")
    assert field == "metadata.name", field
    stream = web.StreamResponse()
    await stream.prepare(request)
    while api.states:
        state = api.states.pop(0)
        if state.get("close"):
            break
        if state.get("forgotten"):
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
            await stream.write(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
            break
        if state.get("abort"):
            assert request.transport is not None
            request.transport.abort()
            break
        found = api.objects["rayjobs", name]
        kind = "MODIFIED"
        if state.get("deleted"):
            del api.objects["rayjobs", name]
            kind = "DELETED"
        else:
            api.add("rayjobs", {**found, "status": state})
            found = api.objects["rayjobs", name]
        await stream.write(json.dumps({"type": kind, "object": found}).encode() + b"\n")
        await asyncio.sleep(0.01)
    return stream


async def log(api: FakeApi, name: str, request: web.Request) -> web.StreamResponse:
    stream = web.StreamResponse()
    await stream.prepare(request)
    if api.cuts:
        api.cuts -= 1
        await stream.write(api.logs[name][: len(api.logs[name]) // 2])
        await asyncio.sleep(0.05)
        assert request.transport is not None
        request.transport.abort()
        return stream
    await stream.write(api.logs[name])
    if api.states and request.query.get("follow") in ("true", "True"):
        job = next(found for (kind, _), found in api.objects.items() if kind == "rayjobs")
        job["status"] = api.states.pop(0)
    return stream


async def execute(api: FakeApi, request: web.Request) -> web.StreamResponse:
    """Channels of v4.channel.k8s.io: 1 stdout, 2 stderr, 3 how it ended."""
    socket = web.WebSocketResponse(protocols=("v4.channel.k8s.io",))
    await socket.prepare(request)
    words = request.query.getall("command")
    api.commands.append(words)
    out, said, code = api.output(words)
    for first in range(0, len(out), 1000):
        await socket.send_bytes(b"\x01" + out[first : first + 1000])
    if said:
        await socket.send_bytes(b"\x02" + said)
    if code >= 0:
        failed = {"causes": [{"reason": "ExitCode", "message": str(code)}]}
        end = {"status": "Failure", "details": failed} if code else {"status": "Success"}
        await socket.send_bytes(b"\x03" + json.dumps(end).encode())
    await socket.close()
    async for message in socket:
        if message.type in (WSMsgType.CLOSE, WSMsgType.ERROR):
            break
    return socket


def serving(api: FakeApi) -> AbstractContextManager[str]:
    """The server in a thread of its own; its address."""

    async def handle(request: web.Request) -> web.StreamResponse:
        return await serve(api, request)

    return in_thread(handle)


def kubeconfig(folder: Path, address: str) -> Path:
    """A kubeconfig with a context `here`, its current one, and one `nowhere`."""
    path = folder / "kubeconfig"
    clusters = {"here": address, "nowhere": "http://127.0.0.1:9"}
    whole = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": key, "cluster": {"server": at}} for key, at in clusters.items()],
        "users": [{"name": "me", "user": {"token": TOKEN}}],
        "contexts": [{"name": key, "context": {"cluster": key, "user": "me"}} for key in clusters],
    }
    path.write_text(yaml.safe_dump(whole))
    return path
