"""The commands `esxsim k8s ...` and `esxsim publish`.

Exit code 0: the run is done. 1: it failed, was stopped, or the cluster cannot be asked. 2: the
input is wrong. Modules that do the work are imported by those commands alone that need them.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from cluster.command_line import ScenarioPath, Seed
from cluster.ending import fail, guarded
from cluster.log import LOG

if TYPE_CHECKING:
    from cluster.k8s.api import Cluster

app = typer.Typer(no_args_is_help=True, help="Run scenarios on Kubernetes with KubeRay.")
Result = TypeVar("Result")

CLAIM = "esxsim-results"
DAY_S = 86_400
_RUN = re.compile(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", re.ASCII)
"""A RayJob's name (KubeRay, validation.go)."""
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)
_OBJECT = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", re.ASCII)
"""Names of a namespace, and of other objects (Kubernetes, Object Names and IDs)."""
_MEMORY = re.compile(r"([1-9][0-9]{0,5})(Mi|Gi)", re.ASCII)
_MEMORY_MIN_MIB = 1024
"""Below, Ray's own processes leave nothing for hosts."""
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,254}", re.ASCII)
_COUNT = re.compile(r"0*[1-9][0-9]{0,8}", re.ASCII)
_URL = re.compile(r"[a-z][a-z0-9+.-]*://[A-Za-z0-9._/~:-]+", re.ASCII)

Run = Annotated[str, typer.Argument(metavar="NAME", help="Name of the run, as submit told it.")]
Image = Annotated[str, typer.Option(help="Image of k8s/image, as the cluster pulls it.")]
Namespace = Annotated[str, typer.Option("--namespace", "-n")]
Context = Annotated[str | None, typer.Option(help="Of the kubeconfig; default: its current one.")]
Name = Annotated[str | None, typer.Option(help="Of the run; default: from what it computes.")]
Workers = Annotated[int, typer.Option(min=0, max=10_000, help="Nodes beside the head.")]
Cpus = Annotated[int, typer.Option(min=1, max=1024, help="CPUs of each node.")]
Memory = Annotated[str, typer.Option(help="Memory of each node, as 4Gi.")]
ResultsClaim = Annotated[str, typer.Option(help="PersistentVolumeClaim for results.")]
DataClaim = Annotated[
    str | None, typer.Option(help="PersistentVolumeClaim with the folder of data.")
]
Data = Annotated[
    Path | None, typer.Option(help="The folder of data here, to check the scenario with it.")
]
Packing = Annotated[str, typer.Option(help="Hosts in one Ray actor: a number, or auto.")]
Deadline = Annotated[int, typer.Option(min=60, help="Seconds until a run is given up.")]
Retries = Annotated[int, typer.Option(min=0, max=100, help="Tries after one that failed.")]
Queue = Annotated[str | None, typer.Option(help="LocalQueue of Kueue.")]
Publish = Annotated[str | None, typer.Option(help="URL below which results are copied, too.")]
PublishSecret = Annotated[str | None, typer.Option(help="Secret with the variables for that.")]
Timeout = Annotated[float | None, typer.Option(min=1, help="Seconds; default: until it ends.")]


def plan(
    scenario: ScenarioPath,
    image: Image,
    namespace: Namespace = "esxsim",
    name: Name = None,
    workers: Workers = 2,
    cpus: Cpus = 2,
    memory: Memory = "4Gi",
    results_claim: ResultsClaim = CLAIM,
    data_claim: DataClaim = None,
    data: Data = None,
    seed: Seed = None,
    hosts_per_actor: Packing = "auto",
    deadline: Deadline = DAY_S,
    retries: Retries = 3,
    queue: Queue = None,
    publish: Publish = None,
    publish_secret: PublishSecret = None,
) -> tuple[Any, Any]:
    """The Options of `render` and of `submit`, checked, and the Inputs that the scenario brings."""
    from cluster.k8s import inputs, objects

    _check_names(namespace, name, results_claim, data_claim, queue, publish_secret)
    _check_words(image, hosts_per_actor, publish, publish_secret)
    found = _guarded(
        lambda: inputs.collect(scenario, data_root=data, seed=seed, data_claim=data_claim)
    )
    if found.sweep and workers == 0:
        fail("--workers: 0 is not for a sweep: its runs ask for CPUs, and a head offers none", 2)
    for warning in found.warnings:
        LOG.warning("%s", warning)
    return objects.Options(
        name=name or found.name,
        namespace=namespace,
        image=image,
        workers=workers,
        cpus=cpus,
        memory_mib=_mib(memory),
        results_claim=results_claim,
        data_claim=data_claim,
        seed=seed,
        hosts_per_actor=hosts_per_actor,
        deadline_s=deadline,
        retries=retries,
        queue=queue,
        publish=publish.rstrip("/") if publish else None,
        publish_secret=publish_secret,
    ), found


def _planned(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose options are those of `plan`, then its own; it gets what `plan` gives."""
    shared = inspect.signature(plan, eval_str=True).parameters
    own = [*inspect.signature(command, eval_str=True).parameters.values()][2:]

    def planned(**given: Any) -> None:
        options, inputs = plan(**{key: value for key, value in given.items() if key in shared})
        command(
            options, inputs, **{key: value for key, value in given.items() if key not in shared}
        )

    parameters = [*shared.values(), *own]
    planned.__name__, planned.__doc__ = command.__name__, command.__doc__
    planned.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    planned.__annotations__ = {one.name: one.annotation for one in parameters}
    return planned


@app.command()
@_planned
def render(options: Any, inputs: Any) -> None:
    """Print the objects of a run as YAML: for kubectl apply, or to look at."""
    from cluster.k8s import objects, yaml_output

    typer.echo(yaml_output.dump(objects.render(options, inputs)), nl=False)


@app.command()
@_planned
def submit(
    options: Any,
    inputs: Any,
    context: Context = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Show what it says; end when and as it does.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="With --wait: folder that the results are copied to.")
    ] = None,
) -> None:
    """Start a run in the cluster, and print its name."""
    from cluster.k8s import fetch as fetching
    from cluster.k8s import objects

    if out is not None and not wait:
        fail("--out: is for --wait", 2)
    if out is not None and out.exists():
        fail(f"--out: {out} is there already: name another folder", 2)
    cluster = _guarded(lambda: _connect(context, options.namespace))
    _guarded(lambda: cluster.start(objects.render(options, inputs)))
    typer.echo(options.name)
    if not wait:
        return
    code = _guarded(lambda: _follow(cluster, options.name))
    if out is not None and code == 0:
        _guarded(
            lambda: fetching.fetch(cluster, options.name, options.image, options.results_claim, out)
        )
        typer.echo(f"Report         {out}", err=True)
    raise typer.Exit(code)


@app.command()
def wait(
    name: Run, namespace: Namespace = "esxsim", context: Context = None, timeout: Timeout = None
) -> None:
    """Wait until a run has ended, and end with its exit code."""
    from cluster.k8s import follow

    cluster = _guarded(lambda: _connect(context, namespace))
    raise typer.Exit(_guarded(lambda: follow.wait(cluster, name, timeout, _tell)))


@app.command()
def logs(
    name: Run,
    namespace: Namespace = "esxsim",
    context: Context = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Until the run has ended, over all its tries.")
    ] = False,
) -> None:
    """Show what a run says."""
    from cluster.k8s import follow as following

    cluster = _guarded(lambda: _connect(context, namespace))
    _guarded(lambda: following.logs(cluster, name, follow=follow, write=_write))


@app.command()
def fetch(
    name: Run,
    namespace: Namespace = "esxsim",
    context: Context = None,
    out: Annotated[Path | None, typer.Option(help="New folder; default: runs/NAME.")] = None,
    image: Annotated[
        str | None, typer.Option(help="Image of the pod that reads; default: the run's.")
    ] = None,
    results_claim: Annotated[
        str | None, typer.Option(help="PersistentVolumeClaim of the results; default: the run's.")
    ] = None,
) -> None:
    """Copy the results of a run, report and tables, to a folder here."""
    from cluster.k8s import fetch as fetching

    _check_name("NAME", name, _RUN)
    _check_name("--results-claim", results_claim, _OBJECT)
    folder = out or Path("runs") / name
    cluster = _guarded(lambda: _connect(context, namespace))
    if image is None or results_claim is None:
        used = _guarded(lambda: fetching.source(cluster, name))
        image, results_claim = image or used[0], results_claim or used[1]
    _guarded(lambda: fetching.fetch(cluster, name, str(image), str(results_claim), folder))
    typer.echo(f"Results        {folder}")


@app.command()
def delete(name: Run, namespace: Namespace = "esxsim", context: Context = None) -> None:
    """Delete a run's objects; one that goes on is stopped. Results stay on their volume."""
    cluster = _guarded(lambda: _connect(context, namespace))
    kinds = ("RayJob", "NetworkPolicy", "ConfigMap")
    found = _guarded(lambda: [kind for kind in kinds if cluster.delete(kind, name)])
    if not found:
        fail(f"{name}: no such run in namespace {namespace}", 1)
    typer.echo(f"deleted        {', '.join(found)}")


def publish(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of a run, or of a sweep, that is done.")
    ],
    url: Annotated[str, typer.Argument(metavar="URL", help="Such as s3://bucket/runs/NAME.")],
) -> None:
    """Copy a finished run's folder to an object store, what makes it whole last."""
    from cluster import publish as publishing

    n = _guarded(lambda: publishing.publish(folder, url))
    typer.echo(f"Published      {n} files to {publishing.shown(url)}")


def _connect(context: str | None, namespace: str) -> Cluster:
    from cluster.k8s.api import Cluster

    return Cluster(context, namespace)


def _follow(cluster: Cluster, name: str) -> int:
    """Show what a run says; its exit code."""
    from cluster.k8s import follow

    follow.logs(cluster, name, follow=True, write=_write)
    return follow.wait(cluster, name, None, _tell)


def _tell(text: str) -> None:
    typer.echo(text, err=True)


def _write(piece: bytes) -> None:
    sys.stdout.buffer.write(piece)
    sys.stdout.flush()


def _check_names(
    namespace: str,
    name: str | None,
    results_claim: str,
    data_claim: str | None,
    queue: str | None,
    publish_secret: str | None,
) -> None:
    _check_name("--namespace", namespace, _LABEL)
    _check_name("--name", name, _RUN)
    _check_name("--results-claim", results_claim, _OBJECT)
    _check_name("--data-claim", data_claim, _OBJECT)
    _check_name("--queue", queue, _LABEL)
    _check_name("--publish-secret", publish_secret, _OBJECT)


def _check_words(
    image: str, hosts_per_actor: str, publish: str | None, publish_secret: str | None
) -> None:
    if not _IMAGE.fullmatch(image):
        fail(f"--image: {image!a} must be the name of an image", 2)
    if hosts_per_actor != "auto" and not _COUNT.fullmatch(hosts_per_actor):
        fail(f"--hosts-per-actor: {hosts_per_actor!a} must be auto or a whole number from 1", 2)
    if publish is not None and not _URL.fullmatch(publish):
        fail("--publish: must be a URL without credentials, such as s3://bucket/runs", 2)
    if publish_secret is not None and publish is None:
        fail("--publish-secret: is for --publish, which is not given", 2)


def _check_name(option: str, value: str | None, wanted: re.Pattern[str]) -> None:
    if value is None or wanted.fullmatch(value):
        return
    most, more = {_RUN: (47, ", a letter first"), _LABEL: (63, "")}.get(wanted, (253, ", and dots"))
    why = f"must be small letters, digits and `-`{more}, {most} characters at most"
    fail(f"{option}: {value!a} {why}", 2)


def _mib(memory: str) -> int:
    found = _MEMORY.fullmatch(memory)
    mib = 0 if found is None else int(found[1]) * (1024 if found[2] == "Gi" else 1)
    if mib < _MEMORY_MIN_MIB:
        fail(f"--memory: {memory!a} must be 1Gi or more, in whole Gi or Mi", 2)
    return mib


def _guarded(work: Callable[[], Result]) -> Result:
    return guarded(work, "stopped; what runs in the cluster goes on")
