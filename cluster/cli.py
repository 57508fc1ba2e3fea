"""The command `esxsim`: reads files, starts a run, shows progress, turns errors into exit codes.

Exit code 0: done. 1: the run failed, or was stopped. 2: the input is wrong. Errors go to stderr,
one line each, without a traceback.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.command_line import DATA_ROOT, DataRoot, speak
from cluster.ending import fail, guarded
from cluster.jobs import commands as jobs
from cluster.k8s import command as k8s
from cluster.run_command import run
from cluster.studies import commands
from cluster.watch.command import top

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="How many VMs fit on these hosts if memory is overcommitted, and what does it cost?",
)
app.command()(run)
app.command()(top)


@app.callback()
def begin() -> None:
    speak()


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
        for path in guarded(lambda: pages.build(folder)):
            typer.echo(f"Page           {path}")
        return

    def rebuild() -> Any:
        page = html.build(folder)
        return page, readback.read(folder).report

    page, found = guarded(rebuild)
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
        fail("why needs either --vm NAME or --host NAME", 2)
    if vm is not None:
        found = guarded(lambda: stories.of_vm(folder, vm))
    else:
        found = guarded(lambda: stories.of_host(folder, str(host)))
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

    holds = guarded(lambda: command.run(names or [], out, seeds, data))
    typer.echo(f"Page           {out / 'reproduction.html'}")
    if not holds:
        raise typer.Exit(1)


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
        fail(f"FORMAT: {format_name!r} is not known; the formats are\n{known}", 2)
    summary = guarded(lambda: traces.import_trace(format_name, source, out))
    typer.echo(f"{summary.vms} VMs and {summary.usage_rows} readings of {summary.rows_read} rows")
    for name, n in sorted(summary.bad.items()):
        typer.echo(f"  left out: {n} {name}")
    for name, n in sorted(summary.cleaned.items()):
        typer.echo(f"  cleaned: {n} {name}")
    typer.echo(f"Trace          {out}")


jobs.register(app)
app.add_typer(k8s.app, name="k8s")
app.command()(k8s.publish)
app.command()(commands.capacity)
app.command()(commands.compare)


def main() -> None:
    """Entry point."""
    app()
