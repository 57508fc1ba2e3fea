"""The commands `esxsim capacity` and `esxsim compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cluster.command_line import (
    DATA_ROOT,
    Address,
    DataRoot,
    Local,
    ScenarioPath,
    Seed,
    cluster_of,
    shown,
)
from cluster.ending import fail, guarded


def capacity(
    scenario: ScenarioPath,
    slo: Annotated[
        list[str],
        typer.Option("--slo", help="What must hold: PATH <= NUMBER, a path of report.json."),
    ],
    vary: Annotated[str, typer.Option(help="What to look for: vms, hosts or overcommit.")] = "vms",
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Seeds to search with.")] = 5,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the runs; default: runs/NAME-SEED-study.")
    ] = None,
    address: Address = "local",
    local: Local = False,
    seed: Seed = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print capacity.json instead of a summary.")
    ] = False,
    data: DataRoot = DATA_ROOT,
) -> None:
    """Find how many VMs fit, how many hosts are needed, or which overcommit is safe."""
    from cluster.studies import capacity, scales, sweep, tables

    kind = next((kind for kind in scales.KINDS if kind == vary), None)
    if kind is None:
        fail(f"--vary: {shown(vary)} must be one of {', '.join(scales.KINDS)}", 2)
    options = sweep.Options(scenario, out, None if local else cluster_of(address), seed, data)
    found, folder = guarded(lambda: capacity.run(options, kind, slo, seeds))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        tables.show_capacity(found)
        typer.echo(f"Page           {folder / 'capacity.html'}")


def compare(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Folders of runs and of studies.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for compare.html and compare.json.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print compare.json instead of a table.")
    ] = False,
) -> None:
    """Put runs side by side: what differs in the scenario, and what that did to the outcome."""
    from cluster.studies import compare as comparison
    from cluster.studies import pages, tables

    found = guarded(lambda: comparison.run(folders, out))
    if out is not None:
        guarded(lambda: pages.build(out))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        tables.show_comparison(found)
        if out is not None:
            typer.echo(f"Page           {out / 'compare.html'}")
