"""Wrong input through the real command: said in full, at once, and nothing is written.

Every row is a way in which people get scenarios wrong, or in which a file from a stranger could do
harm. `test_scenario` and `test_yaml_input` have the long tables of single rules; here it is held
that what they find comes out as it should: exit code 2, a line on stderr with file, path, value and
what is allowed, no traceback, no folder.
"""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scenario_files import HOST, VM, changed, make_trace, save, trace_of, write
from typer.testing import CliRunner

from cluster import execute
from cluster.cli import app
from hostsim.units import GIB, MIB


def refused(path: Path, *options: Any) -> list[str]:
    """Lines on stderr of a run of `path` that must be refused, without the command's name."""
    folder = path.parent
    before = sorted(folder.rglob("*"))
    arguments = ["run", path, "--local", "--out", folder / "deep" / "out", *options]
    found = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert found.exit_code == 2, found.output
    assert found.stdout == ""
    assert "Traceback" not in found.stderr
    assert sorted(folder.rglob("*")) == before, "files were left"
    assert found.stderr.startswith("esxsim: ")
    return found.stderr.removeprefix("esxsim: ").splitlines()


def vm(**values: Any) -> dict[str, Any]:
    return {"vms": [VM | values]}


TABLE: dict[str, tuple[dict[str, Any], str, str, str]] = {
    # what is wrong: change of a valid scenario, path of the key, value, what is allowed
    "an unknown key": (vm(memroy="1 GiB"), "vms[0].memroy", "", "did you mean 'memory'?"),
    "a wrong unit": (vm(memory="64 GB"), "vms[0].memory", "'64 GB'", "(B, KiB, MiB, GiB, TiB)"),
    "no unit": (vm(memory=64), "vms[0].memory", "64", "a memory size with a unit"),
    "a wrong time": ({"duration": "1 hour"}, "duration", "'1 hour'", "(ns, us, ms, s, min, h, d)"),
    "a negative size": (vm(memory="-1 GiB"), "vms[0].memory", "'-1 GiB'", "such as '64 GiB'"),
    "a negative number": (vm(count=-3), "vms[0].count", "-3", "must be at least 1"),
    "an absurd size": (vm(memory="2000 TiB"), "vms[0].memory", "'2000 TiB'", "at most 1024 TiB"),
    "an absurd number": (vm(count=10**12), "vms[0].count", str(10**12), "at most 1000000"),
    "a reservation above the limit": (
        vm(limit="512 MiB", reservation="600 MiB"),
        "vms[0]",
        "",
        "reservation must not exceed limit",
    ),
    "a VM larger than any host": (
        vm(memory="9 GiB"),
        "vms[0].memory",
        "'9 GiB'",
        "is larger than any host: the largest has 8 GiB",
    ),
    "a name twice": (
        {"hosts": [HOST, HOST | {"count": 1, "name": "esx-2"}]},
        "hosts[1].name",
        "'esx-2'",
        "is also the name of hosts[0]",
    ),
    "a name that is a path": (vm(name="../web"), "vms[0].name", "'../web'", "letters, digits"),
    "an image that is not there": (vm(image="bsd"), "vms[0].image", "'bsd'", "known: linux"),
    "no trace": ({"trace": trace_of(path="other")}, "trace.path", "'other'", "does not exist"),
    "a trace above the folder": (
        {"trace": trace_of(path="../trace")},
        "trace.path",
        "'../trace'",
        "in the scenario's folder",
    ),
    "trace data above its folder": (
        {"trace": trace_of(path=None, data="../../etc")},
        "trace.data",
        "'../../etc'",
        "must be the name of one folder",
    ),
    "images above the folder": ({"images": "../x.yaml"}, "images", "'../x.yaml'", "name of a file"),
    "images at the root": ({"images": "/etc/passwd"}, "images", "'/etc/passwd'", "name of a file"),
    "an event for nobody": (
        {"events": [{"at": "1 min", "target": "web", "action": "reset"}]},
        "events[0].target",
        "'web'",
        "did you mean 'web-3'?",
    ),
}


@pytest.mark.parametrize("what", TABLE)
def test_what_is_wrong_is_said_in_full(tmp_path: Path, what: str) -> None:
    change, key, value, allowed = TABLE[what]
    path = write(tmp_path, changed(**change))
    (line,) = refused(path, "--data", tmp_path)
    file, found, rest = line.split(": ", 2)
    name, _, number = file.rpartition(":")
    assert (name, found) == (str(path), key)
    assert number.isdigit()
    assert rest.startswith(f"{value}: " if value else ""), line
    assert allowed in rest


CONTENTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "only a comment": (b"# nothing\n", "is empty"),
    "text": (b"hello\n", "must be a mapping with some of: name, question, seed"),
    "a list": (b"- name: x\n", "must be a mapping with some of: name, question, seed"),
    "not YAML": (b"name: [\n", "is not YAML"),
    "tags": (b"name: !!python/object/apply:os.system ['touch owned']\n", "tags"),
    "binary": (bytes(range(256)) * 4, "UTF-8"),
    "an executable": (b"\x7fELF\x02\x01\x01\x00\x00\x00", "is not YAML"),
    "invalid UTF-8": (b"name: caf\xe9\n", "UTF-8"),
    "UTF-16": ("name: x\n".encode("utf-16"), "UTF-8"),
    "billion laughs": (
        b"a: &a [x, x]\n" + b"".join(b"%c: &%c [*%c, *%c]\n" % (c, c, c - 1, c - 1)
                                     for c in range(ord("b"), ord("z"))),
        "anchors",
    ),
    "deep": (b"[" * 500_000, "is not YAML: exceeded maximum nesting depth"),
    "a key twice": (b"name: a\nname: b\n", "is given twice"),
}  # fmt: skip


@pytest.mark.parametrize("what", CONTENTS)
def test_files_that_are_no_scenario_are_refused(tmp_path: Path, what: str) -> None:
    content, words = CONTENTS[what]
    path = tmp_path / "scenario.yaml"
    path.write_bytes(content)
    lines = refused(path)
    assert lines[0].startswith(f"{path}:")
    assert any(words in line for line in lines), lines
    assert all(line.isprintable() for line in lines)
    assert sum(map(len, lines)) < 2000


def _missing(path: Path) -> None:
    pass


def _folder(path: Path) -> None:
    path.mkdir()


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _loop(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_missing, "No such file"),
        (_folder, "is not a file"),
        (_pipe, "is not a file"),
        (_loop, "symbolic link"),
    ],
)
def test_what_is_no_file_is_refused(
    tmp_path: Path, make: Callable[[Path], None], words: str
) -> None:
    path = tmp_path / "scenario.yaml"
    make(path)
    (line,) = refused(path)
    assert line.startswith(f"{path}: ")
    assert words in line


def test_a_file_of_100_mb_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "scenario.yaml"
    with path.open("wb") as stream:
        stream.write(b"name: x\n# ")
        stream.truncate(100_000_000)
    tracemalloc.start()
    (line,) = refused(path)
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert line == f"{path}: is larger than 1 MiB"
    assert most_bytes < 10 * MIB


def _wreck(name: str, content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("wreck", "words"),
    [
        (_wreck("vms.parquet", b""), "vms.parquet: is not a readable Parquet file"),
        (_wreck("vms.parquet", b"PAR1garbagePAR1"), "vms.parquet: is not a readable Parquet file"),
        (_wreck("usage.parquet", b"\x00" * 99), "usage.parquet: is not a readable Parquet file"),
        (lambda folder: (folder / "vms.parquet").unlink(), "trace"),
    ],
)
def test_a_malformed_trace_is_named(
    tmp_path: Path, wreck: Callable[[Path], Any], words: str
) -> None:
    save(tmp_path, make_trace())
    wreck(tmp_path / "trace")
    path = write(tmp_path, changed(vms=None, trace=trace_of()))
    (line,) = refused(path)
    assert line.startswith(f"{path}:") and ": trace.path: 'trace': " in line
    assert words in line


def test_an_included_file_is_named_where_it_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "images.yaml").write_bytes(b"images:\n  - name: caf\xe9\n")
    (line,) = refused(write(tmp_path, changed(images="images.yaml")))
    assert line == f"{tmp_path / 'images.yaml'}:2: is not UTF-8 text"


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "secret.yaml").write_text("images: []\n")
    (inner / "images.yaml").symlink_to(tmp_path / "secret.yaml")
    (line,) = refused(write(inner, changed(images="images.yaml")))
    assert "must not lead out of the scenario's folder by a link" in line
    assert "secret" not in line


def test_everything_that_is_wrong_is_said_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    bad = changed(seed=-1, duration="1 hour", tick="7 s", nonsense=1) | vm(count=0, image="bsd")
    lines = refused(write(tmp_path, bad))
    keys = [line.split(": ")[1] for line in lines]
    assert set(keys) >= {"seed", "duration", "nonsense", "vms[0].count", "vms[0].image"}
    numbers = [int(line.split(": ")[0].rpartition(":")[2]) for line in lines]
    assert numbers == sorted(numbers)


def test_a_run_too_large_for_the_machine_is_refused_with_the_knob(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execute, "available_bytes", lambda: 300 * MIB)
    hosts = [HOST | {"count": 8, "memory": "64 GiB"}]
    path = write(tmp_path, changed(hosts=hosts, **vm(count=200, memory="8 GiB")))
    (line,) = refused(path)
    needed = "the run needs about 2.2 GiB of memory, 0.3 GiB are available"
    assert line == f"{path}: fidelity.sample: 1: {needed}; 16 would fit"


def test_an_absurd_run_is_refused_before_it_takes_memory(tmp_path: Path) -> None:
    hosts = [HOST | {"count": 1000, "memory": "1024 TiB"}]
    path = write(tmp_path, changed(hosts=hosts, **vm(count=5000, memory="1024 TiB")))
    (line,) = refused(path)
    assert "no value makes it fit: take fewer VMs or hosts" in line


def test_the_machine_says_how_much_memory_it_has() -> None:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < execute.available_bytes() <= total
    assert total > GIB // 4
