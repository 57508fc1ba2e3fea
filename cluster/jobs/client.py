"""The dashboard of a Ray head, as a client of its Jobs API sees it: every call in bounded time, and
what goes wrong in one line.

Ray is imported late: what can be wrong with address and token is found out without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from cluster import ray_environment
from cluster.errors import ClusterError, RefusedError

ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Variables that hold the address where the command does not, as for Ray."""
ALLOWED = "http://HEAD:8265 or https://..., the address of the dashboard of a Ray head"
_PORTS = "its port is 8265 unless ray start --dashboard-port says another"
READ_S = 120.0
"""How long the head may take over a call; it waits itself while it looks for an agent."""
STREAM_S = 24 * 3600
"""How long it may send one file."""
_JOB = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}", re.ASCII)
_CHUNK = 1 << 20
_TALKATIVE = (
    *("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"),
    "ray._private.runtime_env.packaging",
)


def address_of(given: str | None) -> str:
    """The dashboard's address: as given, or as the environment has it. Raises RefusedError."""
    sources = [("--address", given), *((name, os.environ.get(name)) for name in ADDRESSES)]
    where, text = next(((where, text) for where, text in sources if text), ("--address", None))
    if text is None:
        raise RefusedError(f"--address is missing, and so is {ADDRESSES[0]}: {ALLOWED}")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    plain = not (parts.username or parts.password or parts.query or parts.fragment)
    if parts.scheme not in ("http", "https") or not parts.hostname or not plain or port == 0:
        raise RefusedError(f"{where}: {_hidden(text)} must be {ALLOWED}")
    return text.rstrip("/")


def _hidden(text: str) -> str:
    """An address as a message shows it: without a password."""
    return ascii(re.sub(r"//[^@/]*@", "//...@", text))[:100]


def job_id(text: str, where: str = "JOB") -> str:
    """A job's id, or a name for one: it can stand in an address. Raises RefusedError."""
    if not _JOB.fullmatch(text):
        allowed = "letters, digits, '.', '_' and '-', 120 at most, the first a letter or digit"
        raise RefusedError(f"{where}: {text[:60]!a} must be {allowed}")
    return text


class Dashboard:
    """A dashboard that has let us in; `warnings` are for the user, `ray_version` is the head's."""

    def __init__(self, address: str) -> None:
        """Raises RefusedError or ClusterError."""
        self.address = address
        self.warnings: list[str] = []
        self._headers: dict[str, str] = {}
        mode = self._mode()
        if mode == "token":
            self._headers = {"Authorization": f"Bearer {_token(address)}"}
            if address.startswith("http:") and not _is_loopback(address):
                self.warnings.append(
                    f"{address} is not encrypted: token, scenario and results can be read on the "
                    "way; use https or a tunnel"
                )
        else:
            self._headers = {"Authorization": ""}  # or Ray's client may show it our token
            self.warnings.append(
                f"{address} asks for no token: whoever reaches it runs code there and reads results"
            )
        self.ray_version = self._version()
        self._client = self._jobs_client()

    def _mode(self) -> str:
        """How the head knows its users: asked without a token, lest a stranger be shown it."""
        answer = self._get("/api/authentication_mode")
        found = _object(answer)
        if "authentication_mode" not in found:
            raise self._no_dashboard()
        return str(found["authentication_mode"])

    def _version(self) -> str:
        answer = self._get("/api/version")
        if answer.status_code in (401, 403):
            raise RefusedError(f"{self.address} refuses the token: the cluster has another one")
        found = str(_object(answer).get("ray_version"))
        if not re.fullmatch(r"[0-9]+\.[0-9]+\S*", found, re.ASCII):
            raise self._no_dashboard()
        return found

    def _no_dashboard(self) -> RefusedError:
        return RefusedError(
            f"what answers at {self.address} is no Ray dashboard of version 2.52 or later: "
            f"it must be {ALLOWED}"
        )

    def _get(self, path: str, **more: Any) -> requests.Response:
        limits = (ray_environment.CONNECT_S, READ_S)
        with self._reached():
            return requests.get(
                self.address + path,
                headers=self._headers,
                timeout=limits,
                allow_redirects=False,
                **more,
            )

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except requests.exceptions.SSLError as error:
            raise RefusedError(
                f"{self.address}: no trusted certificate: {_reason(error)}"
            ) from None
        except requests.exceptions.Timeout:
            raise ClusterError(f"{self.address} does not answer in time") from None
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema):
            raise RefusedError(f"{self.address} must be {ALLOWED}") from None
        except (requests.exceptions.RequestException, ConnectionError) as error:
            why = f"no Ray dashboard answers at {self.address}: {_reason(error)} ({_PORTS})"
            raise ClusterError(why) from None

    def _jobs_client(self) -> Any:
        """Ray's client, with limits of time and without its log on the screen."""
        ray_environment.prepare(own_cluster=False)
        from ray.job_submission import JobSubmissionClient

        class Client(JobSubmissionClient):
            def _do_request(self, *given: Any, **more: Any) -> Any:
                limits = (ray_environment.CONNECT_S, READ_S)
                return super()._do_request(*given, timeout=limits, **more)

        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.ERROR)
        before = {name: os.environ.pop(name) for name in ADDRESSES if name in os.environ}
        try:  # Ray heeds these before its argument
            return self.call(lambda: Client(self.address, headers=dict(self._headers)))
        finally:
            os.environ.update(before)

    def call(self, work: Callable[[], Any], job: str | None = None) -> Any:
        """Do the work with Ray's client; its errors become ours."""
        from ray.exceptions import AuthenticationError

        with self._reached():
            try:
                return work()
            except AuthenticationError:
                raise RefusedError(f"{self.address} refuses the token") from None
            except RuntimeError as error:
                text = " ".join(str(error).split())
                if job is not None and "status code 404" in text:
                    raise RefusedError(f"{self.address} knows no job {job}") from None
                raise ClusterError(f"{self.address}: {_last(text)}") from None

    def submit(self, entrypoint: str, job: str, metadata: dict[str, str], how: Any) -> None:
        """Start a job. how: Ray's runtime_env."""
        self.call(
            lambda: self._client.submit_job(
                entrypoint=entrypoint, submission_id=job, metadata=metadata, runtime_env=how
            )
        )

    def info(self, job: str) -> Any:
        """JobDetails of a job. Raises RefusedError where there is none."""
        return self.call(lambda: self._client.get_job_info(job), job)

    def jobs(self) -> list[Any]:
        """JobDetails of all jobs."""
        found: list[Any] = self.call(self._client.list_jobs)
        return found

    def stop(self, job: str) -> bool:
        """Ask a job to end; False where it has ended."""
        return bool(self.call(lambda: self._client.stop_job(job), job))

    def logs(self, job: str) -> str:
        """All that a job printed until now."""
        return str(self.call(lambda: self._client.get_job_logs(job), job))

    def follow(self, job: str, show: Callable[[str], None]) -> None:
        """Show what a job prints until it ends."""
        import aiohttp

        async def tail() -> None:
            lines: AsyncIterator[str] = self._client.tail_job_logs(job)
            async for text in lines:
                show(text)

        try:
            with (
                warnings.catch_warnings()
            ):  # Ray says ssl=None, which aiohttp will not take for long
                warnings.simplefilter("ignore", DeprecationWarning)
                self.call(lambda: asyncio.run(tail()), job)
        except aiohttp.ClientError as error:
            raise ClusterError(f"{self.address} sends no more of {job}: {_reason(error)}") from None

    def download(self, node: str, file: str, target: Path, size: int) -> None:
        """Write a file of the logs of a node to `target`, `size` bytes at most."""
        wanted = {"node_id": node, "filename": file, "lines": "-1", "timeout": str(STREAM_S)}
        answer = self._get("/api/v0/logs/file", params=wanted, stream=True)
        with answer, self._reached():
            if answer.status_code != 200:
                raise ClusterError(f"{self.address}: HTTP status {answer.status_code} for {file}")
            written = 0
            with target.open("wb") as stream:
                for block in answer.iter_content(_CHUNK):
                    written += len(block)
                    if written > size:
                        raise ClusterError(f"{self.address} sends more than it said for {file}")
                    stream.write(block)


def _token(address: str) -> str:
    try:
        token = ray_environment.find_token()
    except ValueError as error:
        raise RefusedError(str(error)) from None
    if token is None:
        raise RefusedError(f"no token for {address}: {ray_environment.GIVE_TOKEN}")
    return token


def _object(answer: requests.Response) -> dict[str, Any]:
    try:
        found = answer.json() if answer.status_code == 200 else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _is_loopback(address: str) -> bool:
    host = urlsplit(address).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def _reason(error: BaseException) -> str:
    """The innermost reason that a library gives, short."""
    inner: BaseException | None = error
    while inner is not None:
        error, inner = inner, inner.__cause__ or inner.__context__
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    text = " ".join(str(text).split())[:200]
    return text if text.isprintable() else ascii(text)


def _last(text: str) -> str:
    """The end of what may be a traceback of the head."""
    return text if len(text) <= 300 else f"... {text[-300:]}"
