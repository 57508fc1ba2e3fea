"""The command `esxsim run`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.command_line import (
    DATA_ROOT,
    Address,
    CheckpointEvery,
    Continue,
    Cpus,
    DataRoot,
    Local,
    Log,
    Resume,
    ScenarioPath,
    Seed,
    cluster_of,
    packing_of,
    speak,
)
from cluster.ending import fail, guarded

if TYPE_CHECKING:
    from cluster.coordinator import Outcome


def run(
    scenario: ScenarioPath,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results; default: runs/NAME-SEED.")
    ] = None,
    address: Address = "local",
    local: Local = False,
    hosts_per_actor: Annotated[
        str, typer.Option(help="Hosts in one Ray actor: a number, or auto.")
    ] = "auto",
    seed: Seed = None,
    check: Annotated[
        bool, typer.Option("--check", help="Check every invariant after every epoch.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print report.json instead of a summary.")
    ] = False,
    data: DataRoot = DATA_ROOT,
    resume: Resume = None,
    continue_: Continue = False,
    checkpoint_every: CheckpointEvery = 60,
    log: Log = None,
    cpus: Cpus = None,
) -> None:
    """Run a scenario and write its report; with `sweep`, many runs and what they say together."""
    from cluster import execute
    from cluster.studies import sweep_file

    if log is not None:
        speak(log)
    if cpus is not None and (local or address == "local"):
        fail("--cpus: is for a cluster that exists, with --address", 2)
    if resume is not None and out not in (None, resume):
        fail("--resume: results go on in the folder that it names; leave --out away", 2)
    if sweep_file.has_sweep(scenario):
        if check or hosts_per_actor != "auto" or resume is not None:
            fail("--check, --hosts-per-actor and --resume are not for a sweep", 2)
        place = None if local else cluster_of(address)
        _study(scenario, out, place, seed, data, as_json)
        return

    options = execute.Options(
        scenario=scenario,
        out=resume or out,
        address=None if local else cluster_of(address),
        hosts_per_actor=packing_of(hosts_per_actor),
        seed=seed,
        check=check,
        data_root=data,
        resumes=resume is not None,
        continues=continue_,
        checkpoint_s=checkpoint_every,
        n_cpus=cpus,
    )
    outcome, folder = guarded(lambda: execute.run(options))
    _tell(outcome, folder, as_json)
    if outcome.stopped:
        goes_on = "; --resume goes on from there" if checkpoint_every > 0 else ""
        fail(f"stopped before the end: partial results are in {folder}{goes_on}", 1)


def _tell(outcome: Outcome, folder: Path, as_json: bool) -> None:
    from cluster.summary import summary_lines

    if as_json:
        typer.echo(json.dumps(outcome.report, indent=2))
        return
    typer.echo("\n".join(summary_lines(outcome.report)))
    typer.echo(f"Report         {folder / 'report.html'}")


def _study(
    scenario: Path,
    out: Path | None,
    address: str | None,
    seed: int | None,
    data: Path,
    as_json: bool,
) -> None:
    """Run a sweep, show it, and end as it did."""
    from cluster.studies import sweep, tables

    options = sweep.Options(scenario, out, address, seed, data)
    results, folder = guarded(lambda: sweep.run(options))
    if as_json:
        typer.echo(json.dumps(results, indent=2))
    else:
        tables.show_sweep(results)
        typer.echo(f"Page           {folder / 'sweep.html'}")
    guarded(lambda: sweep.ended(results, folder))
