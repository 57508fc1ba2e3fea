"""The commands that reach a Ray cluster from outside: submit, wait, logs, fetch, stop.

As all commands: 0 done, 1 failed, 2 wrong input; errors are a line on stderr. Nothing that takes
long is imported before a command runs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from cluster.command_line import DATA_ROOT, Cpus, DataRoot, ScenarioPath, Seed
from cluster.ending import fail, guarded
from cluster.log import LOG

if TYPE_CHECKING:
    from cluster.jobs.client import Dashboard

_T = TypeVar("_T")
Address = Annotated[
    str | None,
    typer.Option(
        help="Dashboard of the head, http(s)://HEAD:8265; default: RAY_API_SERVER_ADDRESS.",
        show_default=False,
    ),
]
Job = Annotated[str, typer.Argument(metavar="JOB", help="What esxsim submit printed.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (submit, wait, logs, fetch, stop):
        app.command()(command)


def submit(
    scenario: ScenarioPath,
    address: Address = None,
    data: DataRoot = DATA_ROOT,
    seed: Seed = None,
    name: Annotated[
        str | None, typer.Option(help="Of the results on the head; default: the job's id.")
    ] = None,
    cpus: Cpus = None,
    until_done: Annotated[
        bool, typer.Option("--wait", help="Wait for its end, and end with its exit code.")
    ] = False,
) -> None:
    """Run a scenario as a job of a Ray cluster; prints the job's id."""
    from cluster.jobs import actions, client

    def work() -> tuple[Dashboard, str]:
        where = client.address_of(address)
        given = None if name is None else client.job_id(name, "--name")
        boards: list[Dashboard] = []

        def connect() -> Dashboard:
            boards.append(_connected(where))
            return boards[0]

        job = actions.submit(actions.Submission(scenario, data, seed, given, cpus), connect)
        return boards[0], job

    board, job = _guarded(work)
    typer.echo(job)
    if until_done:
        _end(_guarded(lambda: actions.wait(board, job)))


def wait(job: Job, address: Address = None) -> None:
    """Wait until a job ends, and end with its exit code."""
    from cluster.jobs import actions

    _end(_guarded(lambda: actions.wait(*_found(job, address))))


def logs(
    job: Job,
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", help="Until the job ends.")] = False,
) -> None:
    """Print what a job printed."""

    def show(text: str) -> None:
        typer.echo(text, nl=False)

    def work() -> None:
        board, name = _found(job, address)
        if follow:
            board.info(name)
            board.follow(name, show)
        else:
            show(board.logs(name))

    _guarded(work)


def fetch(
    job: Job,
    address: Address = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results; default: runs/ and their name.")
    ] = None,
) -> None:
    """Bring the results of a job that has ended."""
    from cluster.jobs import actions

    folder = _guarded(lambda: actions.fetch(*_found(job, address), out))
    for page in ("report.html", "sweep.html"):
        if (folder / page).exists():
            typer.echo(f"Report         {folder / page}")
            return
    typer.echo(f"Results        {folder}")


def stop(job: Job, address: Address = None) -> None:
    """End a job; what it has by then is kept."""
    from cluster.jobs import actions

    typer.echo(_guarded(lambda: actions.stop(*_found(job, address))))


def _connected(address: str) -> Dashboard:
    from cluster.jobs import client

    board = client.Dashboard(address)
    for warning in board.warnings:
        LOG.warning("%s", warning)
    return board


def _found(job: str, address: str | None) -> tuple[Dashboard, str]:
    """The dashboard, and the job's id as one that can be asked for."""
    from cluster.jobs import client

    where, name = client.address_of(address), client.job_id(job)
    return _connected(where), name


def _end(ended: tuple[int, str | None]) -> None:
    code, why = ended
    if why is not None:
        fail(why, code)


def _guarded(work: Callable[[], _T]) -> _T:
    return guarded(work, "interrupted: a job that was submitted goes on")
