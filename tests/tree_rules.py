"""Rules of the house as functions of a module's source: each gives, as text, what breaks it.

Nothing is imported. The layers are written out, so that a module in none of them is an error too.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = (
    "hostsim",
    "cluster",
    "cluster.policy",
    "cluster.reproduction",
    "cluster.studies",
    "cluster.jobs",
    "cluster.k8s",
    "cluster.watch",
)

LAYERS = [
    # One host. Policies and mechanisms over its state, the pipeline, the façade, then its bytes.
    "hostsim.units hostsim.patches hostsim.records hostsim.rows hostsim.profiles",
    "hostsim.dispatch",
    "hostsim.jit",
    "hostsim.rng hostsim.config",
    "hostsim.guest_config",
    "hostsim.program hostsim.replay",
    "hostsim.spec hostsim.state",
    "hostsim.arrays",
    "hostsim.ranks hostsim.frames hostsim.ahead",
    "hostsim.closed_form hostsim.compress hostsim.large",
    "hostsim.tier hostsim.composition hostsim.allocate hostsim.reclaim hostsim.sample hostsim.share"
    " hostsim.remap hostsim.invariants hostsim.spread",
    "hostsim.fault hostsim.breaking hostsim.contents hostsim.load hostsim.measure hostsim.packing",
    "hostsim.lost hostsim.replacement hostsim.swap hostsim.tenancy",
    "hostsim.guest hostsim.sketch",
    "hostsim.balloon hostsim.loud",
    "hostsim.touch",
    "hostsim.workload",
    "hostsim.pace hostsim.beside",
    "hostsim.tick",
    "hostsim.epochs",
    "hostsim.host",
    "hostsim.naming",
    "hostsim.snapshot",
    "hostsim.image",
    # Many hosts. What is read, what is said, what is decided, then what runs it.
    "cluster.files cluster.simulator",
    "cluster.parts",
    "cluster.yaml_input cluster.scenario_text cluster.scenario_paths cluster.page_hashes"
    " cluster.hash_counts cluster.trace cluster.messages"
    " cluster.ray_environment cluster.log",
    "cluster.scenario_policies",
    "cluster.scenario cluster.scenario_problems cluster.trace_store cluster.rows cluster.summary",
    "cluster.trace_readers cluster.trace_vms cluster.aggregate cluster.tables",
    "cluster.trace_bitbrains cluster.report_shape cluster.sampling_error",
    "cluster.traces cluster.readback",
    "cluster.charts",
    "cluster.assumptions cluster.scenario_checks cluster.html cluster.errors",
    "cluster.scenario_events cluster.scenario_hashes cluster.outages cluster.ending",
    "cluster.scenario_file",
    "cluster.replays",
    "cluster.rules cluster.pools cluster.sketches",
    "cluster.population",
    "cluster.policy.migration cluster.budget",
    "cluster.policy.state",
    "cluster.policy.placement cluster.policy.decisions cluster.policy.agenda"
    " cluster.policy.conservation",
    "cluster.policy.demand cluster.policy.flights",
    "cluster.policy.hosts cluster.policy.balancing",
    "cluster.policy.lifecycle cluster.policy.evacuation cluster.policy.power_saving"
    " cluster.policy.entitling",
    "cluster.policy.restarts",
    "cluster.policy.history",
    "cluster.policy.planner cluster.host_set cluster.reports cluster.standing cluster.watch.live",
    "cluster.fleet",
    "cluster.checkpoint",
    "cluster.coordinator cluster.resumption",
    "cluster.ray_probe",
    "cluster.ray_session cluster.stopping cluster.recovery",
    "cluster.watch.attach cluster.watch.metrics",
    "cluster.actors cluster.progress cluster.why cluster.watch.looking",
    "cluster.watch.view",
    "cluster.watch.top",
    "cluster.watch.command",
    "cluster.execute",
    # The paper's figures and real machines: claims, experiments, and the command that runs them.
    "cluster.reproduction.claims cluster.reproduction.lab",
    "cluster.reproduction.paper cluster.reproduction.experiment",
    "cluster.reproduction.ballooning cluster.reproduction.identical_vms"
    " cluster.reproduction.production cluster.reproduction.active_memory"
    " cluster.reproduction.idle_tax cluster.reproduction.reallocation cluster.reproduction.page"
    " cluster.reproduction.remapping cluster.reproduction.real_machines"
    " cluster.reproduction.overcommit cluster.reproduction.driverless"
    " cluster.reproduction.sharing_scope",
    "cluster.reproduction.experiments",
    "cluster.reproduction.command",
    # Many runs that answer one question.
    "cluster.studies.spec cluster.studies.statistics cluster.studies.figures"
    " cluster.studies.watching cluster.studies.places cluster.studies.store cluster.studies.search",
    "cluster.studies.axes cluster.studies.slo cluster.studies.binding cluster.studies.verdict",
    "cluster.studies.sweep_file cluster.studies.scales cluster.studies.compare",
    "cluster.studies.tables cluster.studies.drawings",
    "cluster.studies.pages",
    "cluster.studies.jobs",
    "cluster.studies.tasks cluster.studies.results",
    "cluster.studies.sweep",
    "cluster.studies.capacity",
    "cluster.command_line",
    "cluster.run_command cluster.studies.commands",
    # Runs elsewhere.
    "cluster.publish cluster.k8s.inputs cluster.k8s.pods cluster.k8s.outcome"
    " cluster.k8s.yaml_output",
    "cluster.k8s.objects cluster.k8s.api",
    "cluster.k8s.follow",
    "cluster.k8s.fetch",
    "cluster.k8s.command",
    "cluster.jobs.bundle cluster.jobs.upload cluster.jobs.client",
    "cluster.jobs.actions",
    "cluster.jobs.commands",
    "cluster.cli",
    "cluster.jobs.head",
]
"""From the lowest: a module imports from lower lines only, never from its own."""

HOSTSIM_MAY_IMPORT = (
    *("__future__", "typing", "collections", "dataclasses", "functools", "fractions", "re"),
    *("hashlib", "numpy", "pydantic", "hostsim"),
)
HOSTSIM_ALSO = {
    "hostsim.dispatch": ("numba", "importlib"),
    "hostsim.patches": ("numba", "contextlib", "gc"),
    "hostsim.beside": ("numba", "contextlib", "os", "pathlib", "subprocess", "sys", "threading"),
    "hostsim.jit": ("numba", "llvmlite", "os", "pathlib"),  # compiles, and finds its cache
    "hostsim.state": ("numba",),  # gives its type to the compiler
    "hostsim.packing": ("msgpack",),
}
RAY_IN = (
    *("cluster.ray_session", "cluster.actors", "cluster.watch.attach", "cluster.watch.metrics"),
    *("cluster.studies.tasks", "cluster.ray_probe", "cluster.jobs.client", "cluster.jobs.actions"),
)
"""The connection; hosts in actors, found by name; numbers for Prometheus; whole runs in tasks;
what a cluster says before we use it; its Jobs API."""

BANNED_MODULES = (
    *("time", "datetime", "random", "secrets", "uuid"),
    *("pickle", "cloudpickle", "dill", "marshal", "shelve"),
)
BANNED_CALLS = ("hash", "eval", "exec", "compile", "__import__")
BANNED_ATTRIBUTES = (
    *("np.random", "numpy.random", "os.urandom"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load"),
)
ALLOWED = {
    ("cluster.coordinator", "time"): "timings of the manifest, which no result holds",
    ("cluster.host_set", "time"): "busy time of an actor, for the manifest",
    ("cluster.tables", "time"): "how long to wait for another process that writes",
    ("cluster.recovery", "time"): "the pause before a run is begun again",
    ("cluster.ray_session", "time"): "how long nodes may take to come",
    ("cluster.actors", "time"): "how long hosts may take to start",
    ("cluster.watch.live", "time"): "how fast a run is, and how often people are told",
    ("cluster.watch.looking", "time"): "how old a run's news are",
    ("cluster.watch.top", "time"): "how often the terminal is written to",
    ("cluster.log", "time"): "when a line was said",
    ("cluster.k8s.follow", "time"): "how long is waited for a cluster",
    ("cluster.jobs.actions", "secrets"): "the id of a job",
    ("cluster.jobs.actions", "time"): "how often the head is asked",
    ("cluster.progress", "time"): "how often the terminal is written to",
    ("cluster.ray_environment", "secrets"): "the token of a Ray session",
}

POLICIES = (
    *("hostsim.allocate", "hostsim.reclaim"),
    *("cluster.rules", "cluster.pools", "cluster.sketches"),
)
KEEPERS = ("cluster.policy.state", "cluster.policy.history")
"""Of cluster.policy, all of which is pure, what writes to what it is given or keeps."""
OUT_PARAMETERS = {"hostsim.allocate": ("target",)}
"""Arrays that a policy's caller lends it for the answer; kernels return no arrays."""
MUTATORS = (
    *("append", "add", "clear", "discard", "extend", "fill", "insert", "pop", "popitem"),
    *("put", "remove", "resize", "reverse", "setdefault", "sort", "update"),
)

FILE_LINES, FUNCTION_LINES = 350, 60
TOP_LEVEL = (
    *("pyproject.toml", "README.md", "LICENSE", "requirements.lock"),
    *("cluster", "hostsim", "tests", "scenarios", "k8s"),
)
WORKPLACE = ("/wo" + "rk/", ".lib" + "rary", "farm" + "-")
"""Words of where the project was written, which mean nothing where it is read."""


def is_policy(name: str) -> bool:
    """Whether a module only decides."""
    return name in POLICIES or (name.startswith("cluster.policy.") and name not in KEEPERS)


def sources() -> dict[str, str]:
    """Modules of both packages, without the packages themselves, and their text."""
    return {
        f"{package}.{path.stem}": path.read_text(encoding="utf-8")
        for package in PACKAGES
        for path in sorted((ROOT / package.replace(".", "/")).glob("*.py"))
        if path.stem != "__init__"
    }


SOURCES = sources()
MODULES = [name for layer in LAYERS for name in layer.split()]


def imports(source: str) -> Iterator[str]:
    """Every module that the source imports, in functions too; `from a import b` gives a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "relative imports"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(imported: str) -> str | None:
    """The module of this project that an import reaches, if one."""
    parts = imported.split(".")
    length = 3 if ".".join(parts[:2]) in PACKAGES else 2
    return ".".join(parts[:length]) if parts[0] in PACKAGES else None


def imports_upwards(name: str, source: str) -> list[str]:
    layer_of = {one: i for i, layer in enumerate(LAYERS) for one in layer.split()}
    found = []
    for imported in imports(source):
        module = own(imported)
        if module is None or module == "cluster.__version__":
            continue
        if module not in layer_of or layer_of[module] >= layer_of.get(name, -1):
            found.append(f"{name} imports {module}")
    return found


def imports_beyond_its_room(name: str, source: str) -> list[str]:
    """hostsim knows nothing of Ray, files and clocks; only the edge knows Ray."""
    found = []
    for imported in imports(source):
        top = imported.split(".")[0]
        if name.startswith("hostsim."):
            if top not in (*HOSTSIM_MAY_IMPORT, *HOSTSIM_ALSO.get(name, ())):
                found.append(f"{name} imports {imported}")
        elif top == "ray" and name not in RAY_IN:
            found.append(f"{name} imports {imported}")
    return found


def uses_what_is_banned(name: str, source: str) -> list[str]:
    found = [one.split(".")[0] for one in imports(source)]
    found = [top for top in found if top in BANNED_MODULES]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in BANNED_ATTRIBUTES:
            found.append(ast.unparse(node))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found += [node.func.id] * (node.func.id in BANNED_CALLS)
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            found.append("allow_pickle")
    return [f"{name}: {one}" for one in found if (name, one) not in ALLOWED]


def functions(source: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def root_of(node: ast.expr) -> str | None:
    """The name at the bottom of a.b[c].d; None where it is not a name."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Starred):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def bindings(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr | None]]:
    """Target and value of each binding, tuples taken apart; the value is None where unknown."""
    pairs: list[tuple[ast.expr, ast.expr | None]] = []
    for one in ast.walk(node):
        if isinstance(one, ast.Assign):
            pairs += [(target, one.value) for target in one.targets]
        elif isinstance(one, ast.AnnAssign | ast.AugAssign | ast.For):
            value = one.iter if isinstance(one, ast.For) else one.value
            pairs.append((one.target, None if isinstance(one, ast.AugAssign) else value))
        elif isinstance(one, ast.Delete):
            pairs += [(target, None) for target in one.targets]
    while pairs:
        target, value = pairs.pop()
        if isinstance(target, ast.Tuple | ast.List):
            parts = value.elts if isinstance(value, ast.Tuple | ast.List) else []
            matched = len(parts) == len(target.elts)
            pairs += zip(target.elts, parts if matched else [value] * len(target.elts), strict=True)
        else:
            yield target, value


def writes_its_parameters(name: str, source: str) -> list[str]:
    """Assignments into a parameter, or into part of one under another name; mutating methods."""
    found = []
    for function in functions(source):
        given = function.args
        parameters = {one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)}
        parts = {
            target.id
            for target, value in bindings(function)
            if isinstance(target, ast.Name)
            and isinstance(value, ast.Attribute | ast.Subscript | ast.Name)
            and root_of(value) in parameters
        }
        watched = (parameters | parts) - set(OUT_PARAMETERS.get(name, ()))
        written = [target for target, _ in bindings(function) if not isinstance(target, ast.Name)]
        written += [
            one.func.value
            for one in ast.walk(function)
            if isinstance(one, ast.Call)
            and isinstance(one.func, ast.Attribute)
            and one.func.attr in MUTATORS
        ]
        found += [
            f"{name}.{function.name} writes {ast.unparse(one)}"
            for one in written
            if root_of(one) in watched
        ]
    return found


SET_OPERATORS = (ast.BitOr, ast.BitAnd, ast.BitXor, ast.Sub)
ORDERED = ("enumerate", "iter", "list", "map", "next", "reversed", "tuple", "zip")
"""Calls that give the order of what they are given."""


def is_set(node: ast.AST | None, names: set[str]) -> bool:
    if isinstance(node, ast.Set | ast.SetComp):
        return True
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return node.func.id in ("set", "frozenset")
    if isinstance(node, ast.BinOp) and isinstance(node.op, SET_OPERATORS):
        return is_set(node.left, names) or is_set(node.right, names)
    return isinstance(node, ast.Name) and node.id in names


def named_sets(scope: ast.AST) -> set[str]:
    """Names that the scope gives a set."""
    return {
        target.id
        for target, value in bindings(scope)
        if isinstance(target, ast.Name) and is_set(value, set())
    }


def iterates_over_sets(name: str, source: str) -> list[str]:
    """Loops and lists over a set, or over a name that was given one. A set of one is no list."""
    found = []
    tree = ast.parse(source)
    defined = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    top = ast.Module([one for one in tree.body if not isinstance(one, defined)], [])
    everywhere = named_sets(top)
    for scope in (tree, *functions(source)):
        names = everywhere if scope is tree else everywhere | named_sets(scope)
        for node in ast.walk(scope):
            looped: list[ast.expr] = []
            if isinstance(node, ast.For):
                looped = [node.iter]
            elif isinstance(node, ast.ListComp | ast.DictComp | ast.GeneratorExp):
                looped = [part.iter for part in node.generators]
            elif isinstance(node, ast.Starred):
                looped = [node.value]
            elif isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called in ORDERED or called.endswith((".join", ".array", ".extend")):
                    looped = list(node.args)
            found += [
                f"{name}:{one.lineno} {ast.unparse(one)}" for one in looped if is_set(one, names)
            ]
    return sorted(set(found))


def too_long(name: str, source: str) -> list[str]:
    lines = len(source.splitlines())
    found = [f"{name} has {lines} lines"] * (lines > FILE_LINES)
    for function in functions(source):
        length = (function.end_lineno or 0) - function.lineno + 1
        found += [f"{name}.{function.name} has {length} lines"] * (length > FUNCTION_LINES)
    return found


def out_of_place(names: Iterable[str]) -> list[str]:
    tops = {name.split("/")[0] for name in names}
    return sorted(top for top in tops if top not in TOP_LEVEL and not top.startswith("."))


def workplace_words(text: str) -> list[str]:
    return [word for word in WORKPLACE if re.search(re.escape(word), text, re.IGNORECASE)]
