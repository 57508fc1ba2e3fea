"""`esxsim publish`: a finished run's folder at a URL, whole or not to be taken for whole."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from aiohttp import web
from http_in_thread import in_thread
from scenario_files import changed, write
from typer.testing import CliRunner

from cluster import publish as publishing
from cluster.cli import app

SECRET = "do-not-show-this-secret"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run."""
    folder = tmp_path_factory.mktemp("run")
    path = write(folder, changed(duration="5 min"))
    out = folder / "out"
    done = CliRunner().invoke(app, ["run", str(path), "--local", "--out", str(out)])
    assert done.exit_code == 0, done.output
    (out / "checkpoints").mkdir(exist_ok=True)
    (out / "checkpoints" / "0001").write_text("only a run that goes on needs this")
    return out


def publish(folder: Path, url: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["publish", str(folder), url])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


WHOLE = ("epochs.parquet", "events.jsonl", "hosts.parquet", "scenario.yaml", "vms.parquet")


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_a_run_is_there_afterwards(scheme: str, run: Path, tmp_path: Path) -> None:
    url = f"{scheme}://{tmp_path}/runs/mine"
    code, printed, _ = publish(run, url)
    assert code == 0
    assert url in printed
    system, root = fsspec.core.url_to_fs(url)
    found = {Path(name).name: system.cat_file(name) for name in system.find(root)}
    wanted = {*WHOLE, "report.html", "report.json", "manifest.json"}
    assert set(found) == wanted
    assert found == {name: (run / name).read_bytes() for name in wanted}


def test_what_makes_it_whole_comes_last(run: Path) -> None:
    assert publishing.order(run) == [*WHOLE, "report.html", "report.json", "manifest.json"]


def test_a_copy_that_fails_is_not_whole(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where a whole one was before."""
    url = f"memory://{tmp_path}/mine"
    assert publish(run, url)[0] == 0
    system, root = fsspec.core.url_to_fs(url)
    put = type(system).put_file

    def fail(self: Any, source: str, target: str, **options: Any) -> None:
        if target.endswith("vms.parquet"):
            raise OSError("the store is full\nand says so at length")
        put(self, source, target, **options)

    monkeypatch.setattr(type(system), "put_file", fail)
    code, _, said = publish(run, url)
    assert code == 1
    assert said.endswith(": the store is full\n")
    left = {Path(name).name for name in system.find(root)}
    assert not left & {"manifest.json", "report.json", "report.html"}


def test_a_sweep_is_published_with_its_runs(tmp_path: Path) -> None:
    path = write(tmp_path, changed(duration="5 min", sweep={"vary": {"vms.0.count": [1, 2]}}))
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["run", str(path), "--local", "--out", str(out)])
    assert done.exit_code == 0, done.output
    names = publishing.order(out)
    assert names[-3:] == ["sweep.html", "results.json", "study.json"]
    assert sum(name.endswith("/manifest.json") for name in names) == 2
    assert publish(out, f"file://{tmp_path}/there")[0] == 0
    assert all((tmp_path / "there" / name).is_file() for name in names)


@pytest.mark.parametrize("content", [None, '{"partial": true}', "not json"])
def test_a_run_that_is_not_whole_stays(content: str | None, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    if content is not None:
        (folder / "manifest.json").write_text(content)
    code, _, said = publish(folder, f"file://{tmp_path}/there")
    assert code == 2
    assert "not the folder of a whole run" in said
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("runs/mine", "must be a URL"),
        ("s3://me:do-not-show-this-secret@bucket/runs", "from the environment"),
        ("nonsense://x/y", "nonsense"),
    ],
)
def test_a_bad_url_is_refused(url: str, wanted: str, run: Path) -> None:
    code, _, said = publish(run, url)
    assert code == 2
    assert wanted in said
    assert SECRET not in said


class Bucket:
    """As much of S3's REST as a client that puts objects asks for."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.order: list[str] = []
        self.signed = True

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.signed = self.signed and "Signature=" in request.headers.get("Authorization", "")
        name, body = request.path, await request.read()
        if request.headers.get("x-amz-decoded-content-length"):
            body = unchunked(body)
        query = request.query
        if request.method == "POST" and "uploads" in query:
            self.parts[name] = {}
            return xml(f"<InitiateMultipartUploadResult><UploadId>{len(self.parts)}</UploadId>"
                       "</InitiateMultipartUploadResult>")  # fmt: skip
        if request.method == "PUT" and "partNumber" in query:
            self.parts[name][int(query["partNumber"])] = body
            return web.Response(headers={"ETag": '"part"'})
        if request.method == "POST" and "uploadId" in query:
            parts = self.parts.pop(name)
            self.keep(name, b"".join(parts[number] for number in sorted(parts)))
            return xml('<CompleteMultipartUploadResult><ETag>"whole"</ETag>'
                       "</CompleteMultipartUploadResult>")  # fmt: skip
        if request.method == "PUT":
            self.keep(name, body)
            return web.Response(headers={"ETag": '"whole"'})
        if request.method == "DELETE":
            self.objects.pop(name, None)
            return web.Response(status=204)
        if request.method == "HEAD" and name in self.objects:
            length = str(len(self.objects[name]))
            return web.Response(headers={"Content-Length": length, "ETag": '"whole"'})
        if request.method == "HEAD" and name.strip("/").count("/") == 0:
            return web.Response()
        if request.method == "GET":
            return xml("<ListBucketResult><KeyCount>0</KeyCount><IsTruncated>false</IsTruncated>"
                       "</ListBucketResult>")  # fmt: skip
        return web.Response(status=404)

    def keep(self, name: str, body: bytes) -> None:
        self.objects[name] = body
        if body:  # an empty one stands for a folder
            self.order.append(name.rpartition("/")[2])


def xml(text: str) -> web.Response:
    return web.Response(text=f'<?xml version="1.0"?>{text}', content_type="application/xml")


def unchunked(body: bytes) -> bytes:
    """The content of a body in signed chunks: SIZE;chunk-signature=...\\r\\nBYTES\\r\\n."""
    found = b""
    while body:
        head, _, rest = body.partition(b"\r\n")
        size = int(re.split(rb"[;\r]", head)[0] or b"0", 16)
        if size == 0:
            return found
        found, body = found + rest[:size], rest[size + 2 :]
    return found


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    found = Bucket()
    with in_thread(found.handle) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        monkeypatch.setenv("AWS_REGION", "eu-central-1")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield found


def test_a_run_goes_to_a_bucket(run: Path, bucket: Bucket) -> None:
    """By variables of the environment, as a Secret gives them to a pod; signed with the secret."""
    code, printed, said = publish(run, "s3://bucket/runs/mine")
    assert code == 0, said
    assert SECRET not in printed + said
    assert bucket.signed
    names = publishing.order(run)
    assert bucket.order == names
    stored = {name: body for name, body in bucket.objects.items() if body}
    assert stored == {f"/bucket/runs/mine/{name}": (run / name).read_bytes() for name in names}


def test_fsspec_is_an_extra(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    code, _, said = publish(run, "s3://bucket/runs")
    assert code == 2
    assert "pip install 'esxsim[s3]'" in said
