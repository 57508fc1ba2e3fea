"""The command line of `esxsim top`; loads no more than that until it is used."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.ending import fail, guarded


def top(
    where: Annotated[
        str, typer.Argument(metavar="ADDRESS|DIR", help="Ray cluster, or folder of a run.")
    ],
    run: Annotated[str | None, typer.Option(help="Which run of the cluster.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Show it once, and end.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
) -> None:
    """Look on while a run goes on: memory, hosts by pressure, slowest VMs, speed, time left."""
    if "://" in where:
        fail(f"ADDRESS|DIR: {where!a} must be the folder of a run, auto, or HOST:PORT of a head", 2)
    from cluster.watch import top as screen

    guarded(lambda: screen.watch(where, run, interval, once=once))
