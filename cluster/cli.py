"""The command `esxsim`: reads files, starts a run, shows progress, turns errors into exit codes.

Exit code 0: done. 1: the run failed, or was stopped. 2: the input is wrong. Errors go to stderr,
one line each, without a traceback.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from cluster.k8s import command as k8s

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="How many VMs fit on these hosts if memory is overcommitted, and what does it cost?",
)

app.add_typer(k8s.app, name="k8s")
app.command()(k8s.publish)

ScenarioPath = Annotated[Path, typer.Argument(metavar="SCENARIO", help="Scenario file (YAML).")]
DataRoot = Annotated[
    Path, typer.Option("--data", help="Folder with trace data that scenarios name.")
]
Address = Annotated[str, typer.Option(help="Ray cluster: auto, local, or HOST:PORT of its head.")]
Local = Annotated[bool, typer.Option("--local", help="In this process, without Ray.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Instead of the scenario's.")]
DATA_ROOT = Path("../shared/data")


@app.command()
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
) -> None:
    """Run a scenario and write its report; with `sweep`, many runs and what they say together."""
    from cluster import execute
    from cluster.studies import sweep_file

    if sweep_file.has_sweep(scenario):
        if check or hosts_per_actor != "auto":
            _fail("--check and --hosts-per-actor are not for a sweep: a run is one process", 2)
        place = None if local else _cluster(address)
        _study(scenario, out, place, seed, data, as_json)
        return

    options = execute.Options(
        scenario=scenario,
        out=out,
        address=None if local else _cluster(address),
        hosts_per_actor=_packing(hosts_per_actor),
        seed=seed,
        check=check,
        data_root=data,
    )
    outcome, folder = _guarded(lambda: execute.run(options))
    if as_json:
        typer.echo(json.dumps(outcome.report, indent=2))
    else:
        from cluster.summary import summary_lines

        typer.echo("\n".join(summary_lines(outcome.report)))
        typer.echo(f"Report         {folder / 'report.html'}")
    if outcome.stopped:
        _fail(f"stopped before the end: partial results are in {folder}", 1)


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
    results, folder = _guarded(lambda: sweep.run(options))
    if as_json:
        typer.echo(json.dumps(results, indent=2))
    else:
        tables.show_sweep(results)
        typer.echo(f"Page           {folder / 'sweep.html'}")
    _guarded(lambda: sweep.ended(results, folder))


@app.command()
def validate(
    scenarios: Annotated[list[Path], typer.Argument(metavar="SCENARIO...")],
    data: DataRoot = DATA_ROOT,
) -> None:
    """Report every problem of scenario files; nothing runs."""
    from cluster.studies import sweep_file
    from cluster.yaml_input import InputError

    wrong = False
    for path in scenarios:
        try:
            warnings, valid = sweep_file.validate(path, data)
        except InputError as error:
            typer.echo(str(error), err=True)
            wrong = True
        else:
            for warning in warnings:
                typer.echo(f"{path}: warning: {warning}", err=True)
            typer.echo(f"{path}: {valid}")
    if wrong:
        raise typer.Exit(2)


@app.command()
def schema() -> None:
    """Print the JSON Schema of the scenario format, for editors."""
    from cluster.studies import spec

    typer.echo(json.dumps(spec.schema(), indent=2))


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run, or of a study.")],
) -> None:
    """Show a run's summary again and rebuild its report.html; or the pages of a study."""
    from cluster import html, readback
    from cluster.studies import pages, store
    from cluster.summary import summary_lines

    if store.is_study(folder):
        for path in _guarded(lambda: pages.build(folder)):
            typer.echo(f"Page           {path}")
        return

    def rebuild() -> Any:
        page = html.build(folder)
        return page, readback.read(folder).report

    page, found = _guarded(rebuild)
    if found is not None:
        typer.echo("\n".join(summary_lines(found)))
    else:
        typer.echo("The run was killed before its report: the page shows what it left.")
    typer.echo(f"Report         {page}")


@app.command()
def why(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run.")],
    vm: Annotated[str | None, typer.Option(help="Name of a VM.")] = None,
    host: Annotated[str | None, typer.Option(help="Name of a host.")] = None,
) -> None:
    """Tell what befell one VM or one host, and which numbers decided it."""
    from cluster import why as stories

    if (vm is None) == (host is None):
        _fail("why needs either --vm NAME or --host NAME", 2)
    if vm is not None:
        found = _guarded(lambda: stories.of_vm(folder, vm))
    else:
        found = _guarded(lambda: stories.of_host(folder, str(host)))
    typer.echo("\n".join(stories.lines(found)))


@app.command()
def reproduce(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME...]", help="Experiments, such as fig7; default: all."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the table and the page.")] = Path(
        "runs/reproduction"
    ),
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Seeds of each experiment that is random.")
    ] = None,
    data: DataRoot = DATA_ROOT,
) -> None:
    """Reproduce the paper's figures and real machines' measurements, claim by claim."""
    from cluster.reproduction import command

    holds = _guarded(lambda: command.run(names or [], out, seeds, data))
    typer.echo(f"Page           {out / 'reproduction.html'}")
    if not holds:
        raise typer.Exit(1)


@app.command()
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
        _fail(f"--vary: {_shown(vary)} must be one of {', '.join(scales.KINDS)}", 2)
    options = sweep.Options(scenario, out, None if local else _cluster(address), seed, data)
    found, folder = _guarded(lambda: capacity.run(options, kind, slo, seeds))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        tables.show_capacity(found)
        typer.echo(f"Page           {folder / 'capacity.html'}")


@app.command()
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

    found = _guarded(lambda: comparison.run(folders, out))
    if out is not None:
        _guarded(lambda: pages.build(out))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        tables.show_comparison(found)
        if out is not None:
            typer.echo(f"Page           {out / 'compare.html'}")


@app.command("import")
def import_(
    format_name: Annotated[
        str, typer.Argument(metavar="FORMAT", help="Format of SRC; `?` lists all that are known.")
    ],
    source: Annotated[Path, typer.Argument(metavar="SRC", help="File or folder of the trace.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the imported trace.")],
) -> None:
    """Bring a real VM trace to the normal form."""
    from cluster import traces

    if format_name not in traces.FORMATS:
        known = "\n".join(f"  {name}: {what}" for name, what in traces.FORMATS.items())
        _fail(f"FORMAT: {format_name!r} is not known; the formats are\n{known}", 2)
    summary = _guarded(lambda: traces.import_trace(format_name, source, out))
    typer.echo(f"{summary.vms} VMs and {summary.usage_rows} readings of {summary.rows_read} rows")
    for name, n in sorted(summary.bad.items()):
        typer.echo(f"  left out: {n} {name}")
    for name, n in sorted(summary.cleaned.items()):
        typer.echo(f"  cleaned: {n} {name}")
    typer.echo(f"Trace          {out}")


def _cluster(text: str) -> str:
    from cluster import ray_environment

    if text not in ("auto", "local") and ray_environment.head_of(text) is None:
        client = "; ray:// (Ray Client) cannot drive a run" * text.startswith("ray:")
        _fail(f"--address: {_shown(text)} must be {ray_environment.ALLOWED}{client}", 2)
    return text


def _packing(text: str) -> int | None:
    if text == "auto":
        return None
    if re.fullmatch(r"0*[1-9][0-9]{0,8}", text) is None:
        _fail(f"--hosts-per-actor: {_shown(text)} must be auto or a whole number from 1", 2)
    return int(text)


def _shown(text: str) -> str:
    from cluster.yaml_input import shown

    return shown(text)


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"esxsim: {message}", err=True)
    raise typer.Exit(code)


def _guarded(work: Callable[[], Any]) -> Any:
    """Do the work; known errors become a message and an exit code."""
    from cluster.errors import exit_code

    try:
        return work()
    except Exception as error:
        code = exit_code(error)
        if code is None:
            raise
        _fail(str(error), code)


def main() -> None:
    """Entry point."""
    app()
