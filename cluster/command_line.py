"""The options that commands have in common, and what they may be."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from cluster import log
from cluster.ending import fail

ScenarioPath = Annotated[Path, typer.Argument(metavar="SCENARIO", help="Scenario file (YAML).")]
DataRoot = Annotated[
    Path, typer.Option("--data", help="Folder with trace data that scenarios name.")
]
Address = Annotated[str, typer.Option(help="Ray cluster: auto, local, or HOST:PORT of its head.")]
Local = Annotated[bool, typer.Option("--local", help="In this process, without Ray.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Instead of the scenario's.")]
DATA_ROOT = Path("../shared/data")
Resume = Annotated[
    Path | None, typer.Option(help="Go on from the last checkpoint of the run in this folder.")
]
Log = Annotated[str | None, typer.Option(help="What is said on stderr: text, or json lines.")]
Cpus = Annotated[
    int | None, typer.Option(min=1, help="Have the cluster's autoscaler bring so many CPUs first.")
]
Continue = Annotated[
    bool, typer.Option("--continue", help="Go on with the run in --out, or begin it.")
]
CheckpointEvery = Annotated[
    float, typer.Option(min=0, metavar="SECONDS", help="Time between checkpoints; 0: none.")
]


def cluster_of(text: str) -> str:
    """The address, if it is one; ends the command where it is none."""
    from cluster import ray_environment

    if text not in ("auto", "local") and ray_environment.head_of(text) is None:
        client = "; ray:// (Ray Client) cannot drive a run" * text.startswith("ray:")
        fail(f"--address: {shown(text)} must be {ray_environment.ALLOWED}{client}", 2)
    return text


def packing_of(text: str) -> int | None:
    """Hosts per actor, None for auto."""
    if text == "auto":
        return None
    if re.fullmatch(r"0*[1-9][0-9]{0,8}", text) is None:
        fail(f"--hosts-per-actor: {shown(text)} must be auto or a whole number from 1", 2)
    return int(text)


def shown(text: str) -> str:
    """A value of the user's, as messages quote it."""
    from cluster.yaml_input import shown

    return shown(text)


def speak(form: str | None = None) -> None:
    """Choose how lines on stderr look; None: as the environment says."""
    try:
        log.use(form)
    except ValueError as error:
        fail(str(error), 2)
