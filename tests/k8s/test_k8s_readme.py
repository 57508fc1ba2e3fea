"""Commands of k8s/README.md: they exist, take these options, and name files that are there."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main
from manifests import BUILDS, K8S, ROOT, objects

from cluster.cli import app
from cluster.k8s.objects import RAY_VERSION

TEXT = (K8S / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
PLACEHOLDERS = {"REGISTRY": "registry.example", "BUCKET": "bucket", "NAME": "two-hosts"}
OTHERS = {"openssl": ("rand",), "tr": ("-d",), "pip": ("install",), "kind": ("load",)}
"""Commands that are not ours to check, and what is used of them."""
HELM = {
    "repo": {"add", "update"},
    "upgrade": {"--install", "--version", "--namespace", "--create-namespace", "--values"},
}


def commands() -> Iterator[list[str]]:
    """Each command of each block, placeholders filled in; those in $(...) are commands, too."""
    for block in BLOCKS:
        for line in block.strip().splitlines():
            inner = re.findall(r"\$\((.*?)\)", line)
            outer = re.sub(r"\$\((.*?)\)", "pod/found", line)
            for text in (*inner, outer):
                for part in text.split(" | "):
                    words = shlex.split(part.partition(" > ")[0])
                    yield [fill(word) for word in words]


def fill(word: str) -> str:
    for name, value in PLACEHOLDERS.items():
        word = re.sub(rf"\b{name}\b", value, word)
    return word


ALL = list(commands())


def of(program: str) -> list[list[str]]:
    found = [words[1:] for words in ALL if words[0] == program]
    assert found
    return found


def test_every_command_is_one_that_is_checked() -> None:
    assert {words[0] for words in ALL} <= {"kubectl", "esxsim", "helm", "podman", *OTHERS}
    for program, first in OTHERS.items():
        assert all(words[0] in first for words in of(program))


@pytest.mark.parametrize("words", of("esxsim"), ids=" ".join)
def test_esxsim_takes_these_words(words: list[str]) -> None:
    """Parsed as the command line is; nothing runs."""
    command: Any = typer.main.get_command(app)
    context = command.make_context("esxsim", ["--help"], resilient_parsing=True)
    rest = list(words)
    while hasattr(command, "commands"):
        name = rest.pop(0)
        command = command.get_command(context, name)
        assert command is not None, name
    context = command.make_context(command.name, rest)
    scenario = context.params.get("scenario")
    assert scenario is None or (ROOT / scenario).is_file()
    folders = [context.params[key] for key in ("out",) if context.params.get(key)]
    assert all(Path(folder).parts[0] == "runs" for folder in folders)


@cache
def flags_of(*command: str) -> set[str]:
    """The options that a command's help names, and those of all commands."""
    known = set()
    for words in (command, ("options",)):
        done = subprocess.run(
            ["kubectl", *words, *(["--help"] if words != ("options",) else [])],
            capture_output=True,
            text=True,
            check=True,
        )
        known |= set(re.findall(r"(--?[a-z][a-z0-9-]*)", done.stdout))
    return known


@pytest.mark.parametrize("words", of("kubectl"), ids=" ".join)
def test_kubectl_takes_these_words(words: list[str]) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl")
    own = words[: words.index("--")] if "--" in words else words
    verbs = [word for word in own if not word.startswith("-")]
    if own[:1] == ["--namespace"]:
        verbs = verbs[1:]
    command = tuple(verbs[:3]) if verbs[0] == "create" else tuple(verbs[:1])
    command = tuple(verbs[:2]) if verbs[:2] == ["rollout", "status"] else command
    known = flags_of(*command)
    for word in own:
        if word.startswith("-") and word != "-":
            assert word.partition("=")[0] in known, f"kubectl {' '.join(command)} has no {word}"


def test_what_is_applied_is_there() -> None:
    for words in of("kubectl"):
        if "-k" in words:
            target = words[words.index("-k") + 1]
            if target.startswith("github.com/"):
                assert "?ref=v1.7.0" in target
            else:
                assert str(Path(target).relative_to("k8s")) in BUILDS
        if words[:1] == ["apply"] and "-f" in words:
            assert words[words.index("-f") + 1] == "run.yaml"  # which the line above it makes


def test_helm_installs_the_version_that_the_crds_are_of() -> None:
    for words in of("helm"):
        assert words[0] in HELM
        if words[0] == "repo":
            assert words[1] in HELM["repo"]
            continue
        flags = {word for word in words if word.startswith("--")}
        assert flags <= HELM["upgrade"]
        assert words[words.index("--version") + 1] == "1.7.0"
        assert (ROOT / words[words.index("--values") + 1]).is_file()


def test_podman_builds_what_is_there() -> None:
    for words in of("podman"):
        assert words[0] in ("build", "push", "save")
        if words[0] == "build":
            assert (ROOT / words[words.index("--file") + 1]).is_file()
            assert words[-1] == "."


def test_no_command_shows_a_token() -> None:
    """A value on a command line is in the list of processes, and in a shell's history."""
    for words in ALL:
        assert not any("--from-literal" in word or word[-11:] == "auth_token=" for word in words)
        assert not any(re.search(r"(TOKEN|SECRET)[A-Z_]*=", word) for word in words)


def test_versions_are_the_ones_in_use() -> None:
    assert f"| Ray | {RAY_VERSION} |" in TEXT
    for name in ("requirements.lock", "k8s/image/requirements.lock"):
        assert f"ray=={RAY_VERSION} " in (ROOT / name).read_text()
    cluster = objects((K8S / "base/raycluster/raycluster.yaml").read_text())[0]["spec"]
    assert cluster["rayVersion"] == RAY_VERSION


def test_the_image_s_pins_are_those_of_the_lock() -> None:
    def pins(name: str) -> dict[str, str]:
        text = (ROOT / name).read_text()
        return dict(
            re.findall(r"^([A-Za-z0-9._-]+==\S+[^\n]*)((?:\n    --hash=\S+.*)+)", text, re.M)
        )

    of_all, of_image = pins("requirements.lock"), pins("k8s/image/requirements.lock")
    assert len(of_image) > 50
    assert of_image.items() <= of_all.items()
    names = {pin.partition("==")[0] for pin in of_image}
    assert {"ray", "numba", "fsspec"} <= names
    assert not {"pytest", "mypy", "kubernetes"} & names


def test_files_that_are_named_are_there() -> None:
    for name in re.findall(r"`((?:base|overlays|image|\.\./)[A-Za-z0-9_./-]*)`", TEXT):
        assert (K8S / name).exists(), name


def test_ports_of_the_table_are_ports_of_pods() -> None:
    (job,) = objects((K8S / "base/rayjob/rayjob.yaml").read_text())
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    table = TEXT.partition("What listens where")[2].partition("Within a run")[0]
    for port in head["ports"]:
        assert str(port["containerPort"]) in table
