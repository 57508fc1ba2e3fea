"""The only place with the Kubernetes client: what we ask of an API server, its errors in words.

Nothing here decides anything. The client is imported on connecting, for it is an extra.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from cluster.errors import ClusterError
from cluster.files import OutputError
from cluster.k8s.pods import RUN_LABEL, Values

GROUP, VERSION, PLURAL = "ray.io", "v1", "rayjobs"
TIMEOUT_S = (5, 60)
"""To connect, and for an answer."""
FIELD_MANAGER = "esxsim"
_FORGOTTEN = 410
"""What a watch is answered that asks for changes since too long ago."""
_END = 3
"""The channel of a command in a pod that says how it ended (v4.channel.k8s.io)."""
_RAW: Values = {"_request_timeout": TIMEOUT_S, "_preload_content": False}
"""We read answers ourselves: the client's own types refuse what a newer server may say."""


class MissingError(ClusterError):
    """What was asked for is not there."""


class CutError(ClusterError):
    """The connection to the API server failed, or ended; asking again may help."""


class Cluster:
    """A namespace of a Kubernetes cluster, as the user's kubeconfig opens it."""

    def __init__(self, context: str | None, namespace: str) -> None:
        """context: of the kubeconfig; None is its current one. Raises ClusterError."""
        try:
            import kubernetes
        except ImportError:
            raise OutputError("needs the Kubernetes client: pip install 'esxsim[k8s]'") from None
        self.namespace = namespace
        client: Any = kubernetes  # whose types differ from version to version
        self._k8s = client
        try:
            client.config.load_kube_config(context=context)
        except (client.config.ConfigException, OSError) as error:
            raise ClusterError(f"no Kubernetes cluster: {error}") from None
        configuration = client.client.Configuration.get_default_copy()
        configuration.retries = 1
        self._api = client.client.ApiClient(configuration)
        # Few requests, long apart: a connection that is kept would only be cut by then.
        self._api.set_default_header("Connection", "close")
        self._core = client.client.CoreV1Api(self._api)
        self._network = client.client.NetworkingV1Api(self._api)
        self._custom = client.client.CustomObjectsApi(self._api)

    def start(self, bodies: Sequence[Values]) -> None:
        """Make all objects of a run, or none: what was made is taken back where a later one is
        refused. Raises ClusterError."""
        made: list[Values] = []
        try:
            for body in bodies:
                self.create(body)
                made.append(body)
        except ClusterError:
            for body in reversed(made):
                self.delete(body["kind"], body["metadata"]["name"])
            raise

    def create(self, body: Values) -> None:
        """Make an object of a run, or the pod that fetches. Fields that the server does not know
        are refused."""
        kind, where = body["kind"], self.namespace
        options: Values = _RAW | {"field_validation": "Strict", "field_manager": FIELD_MANAGER}
        with self._told(f"{kind} {body['metadata']['name']}"):
            if kind == "ConfigMap":
                answer = self._core.create_namespaced_config_map(where, body, **options)
            elif kind == "NetworkPolicy":
                answer = self._network.create_namespaced_network_policy(where, body, **options)
            elif kind == "Pod":
                answer = self._core.create_namespaced_pod(where, body, **options)
            else:
                answer = self._custom.create_namespaced_custom_object(
                    GROUP, VERSION, where, PLURAL, body, **options
                )
            _json(answer)

    def delete(self, kind: str, name: str) -> bool:
        """Delete an object, what it owns in the background. False where it is not there."""
        where = self.namespace
        options: Values = _RAW | {"propagation_policy": "Background"}
        try:
            with self._told(f"{kind} {name}"):
                if kind == "ConfigMap":
                    answer = self._core.delete_namespaced_config_map(name, where, **options)
                elif kind == "NetworkPolicy":
                    answer = self._network.delete_namespaced_network_policy(name, where, **options)
                elif kind == "Pod":
                    options["grace_period_seconds"] = 0
                    answer = self._core.delete_namespaced_pod(name, where, **options)
                else:
                    answer = self._custom.delete_namespaced_custom_object(
                        GROUP, VERSION, where, PLURAL, name, **options
                    )
                _json(answer)
        except MissingError:
            return False
        return True

    def job(self, name: str) -> Values:
        """A RayJob."""
        with self._told(f"RayJob {name}"):
            return _json(
                self._custom.get_namespaced_custom_object(
                    GROUP, VERSION, self.namespace, PLURAL, name, **_RAW
                )
            )

    def job_changes(self, name: str, since: Values, seconds: int) -> Iterator[Values]:
        """A RayJob each time that it changes after `since`, for some seconds, or until the server
        forgets `since`; one that is deleted raises MissingError."""
        watch = self._k8s.watch.Watch()
        with self._told(f"RayJob {name}"):
            for event in watch.stream(
                self._custom.list_namespaced_custom_object,
                GROUP,
                VERSION,
                self.namespace,
                PLURAL,
                field_selector=f"metadata.name={name}",
                resource_version=since["metadata"].get("resourceVersion"),
                timeout_seconds=seconds,
                _request_timeout=(TIMEOUT_S[0], seconds + TIMEOUT_S[1]),
            ):
                if event["type"] == "DELETED":
                    raise MissingError(f"RayJob {name} was deleted")
                yield event["object"]

    def submitters(self, name: str) -> list[Values]:
        """Pods that hand the command of a RayJob over, the oldest first; their log is the run's.
        The operator names the Job that makes them as the RayJob."""
        with self._told(f"pods of {name}"):
            found = self._core.list_namespaced_pod(
                self.namespace,
                label_selector=f"{RUN_LABEL}={name},batch.kubernetes.io/job-name={name}",
                **_RAW,
            )
            pods: list[Values] = _json(found)["items"]
        return sorted(pods, key=lambda one: one["metadata"]["creationTimestamp"])

    def pod(self, name: str) -> Values:
        """A pod."""
        with self._told(f"pod {name}"):
            return _json(self._core.read_namespaced_pod(name, self.namespace, **_RAW))

    def log(self, pod: str, *, follow: bool) -> Iterator[bytes]:
        """A pod's log in pieces; with `follow`, until its container ends."""
        # A run may be silent for hours.
        options = {} if follow else {"_request_timeout": TIMEOUT_S}
        with self._told(f"log of pod {pod}"):
            answer = self._core.read_namespaced_pod_log(
                pod, self.namespace, follow=follow, _preload_content=False, **options
            )
            try:
                yield from answer.stream(decode_content=False)
            finally:
                answer.release_conn()

    def output(self, pod: str, command: list[str]) -> Generator[bytes, None, None]:
        """What a command in a pod writes to stdout. Raises ClusterError where it fails."""
        with self._told(f"command in pod {pod}"):
            stream = self._k8s.stream.stream(
                self._core.connect_get_namespaced_pod_exec,
                pod,
                self.namespace,
                command=command,
                stdin=False,
                stdout=True,
                stderr=True,
                tty=False,
                binary=True,
                _preload_content=False,
            )
            said = b""
            try:
                while stream.is_open():
                    stream.update(timeout=TIMEOUT_S[1])
                    while stream.peek_stdout():
                        yield stream.read_stdout()
                    while stream.peek_stderr():
                        said += stream.read_stderr()
                end = stream.read_channel(_END)
            finally:
                stream.sock.shutdown()  # close() does nothing once the server has closed
            if not end or json.loads(end)["status"] != "Success":
                why = said.decode(errors="replace").strip() or "the connection ended"
                raise ClusterError(f"{command[0]} in pod {pod} failed: {why}")

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """What goes wrong inside, in words; never with headers, which hold credentials."""
        errors = self._k8s.client.exceptions
        try:
            yield
        except errors.ApiException as error:
            why = _message(error)
            if error.status == 404 and what.startswith("RayJob") and "could not find" in why:
                raise ClusterError("the cluster knows no RayJob: is KubeRay installed?") from None
            if error.status == _FORGOTTEN:
                raise CutError(f"{what}: {why}") from None
            if error.status == 409:
                why = f"is there already: wait for it, or `esxsim k8s delete` it first; {why}"
            kind = MissingError if error.status == 404 else ClusterError
            raise kind(f"{what}: {why}") from None
        except (self._k8s.config.ConfigException, *_network_errors()) as error:
            raise CutError(f"{what}: {error}") from None


def _json(answer: Any) -> Values:
    """What the API server answered."""
    found: Values = json.loads(answer.data)
    return found


def _network_errors() -> tuple[type[Exception], ...]:
    from urllib3.exceptions import HTTPError
    from websocket import WebSocketException

    return HTTPError, WebSocketException, OSError


def _message(error: Any) -> str:
    """What the API server said."""
    try:
        said = json.loads(error.body)["message"]
    except (TypeError, ValueError, KeyError):
        said = error.reason or "no answer"
    return f"{said} ({error.status})" if error.status else str(said)
