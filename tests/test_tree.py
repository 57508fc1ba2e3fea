"""The sources keep the rules of the house (tree_rules), and every rule can fail.

Nothing is imported, no Ray starts: a rule that is broken on purpose, on a few lines, must be found.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest
from tree_rules import (
    ALLOWED,
    HOSTSIM_ALSO,
    MODULES,
    RAY_IN,
    ROOT,
    SOURCES,
    WORKPLACE,
    imports,
    imports_beyond_its_room,
    imports_upwards,
    is_policy,
    iterates_over_sets,
    out_of_place,
    too_long,
    uses_what_is_banned,
    workplace_words,
    writes_its_parameters,
)

RULES: list[Callable[[str, str], list[str]]] = [
    imports_upwards,
    imports_beyond_its_room,
    uses_what_is_banned,
    iterates_over_sets,
    too_long,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule.__name__))
def test_every_module_keeps_the_rule(rule: Callable[[str, str], list[str]]) -> None:
    assert [one for name, source in SOURCES.items() for one in rule(name, source)] == []


@pytest.mark.parametrize("name", [name for name in MODULES if is_policy(name)])
def test_a_policy_never_writes_what_it_is_given(name: str) -> None:
    assert writes_its_parameters(name, SOURCES[name]) == []


def test_every_module_has_one_layer() -> None:
    assert sorted(MODULES) == sorted(SOURCES)


def test_what_is_allowed_by_name_is_there() -> None:
    """An exception that nobody needs any more must go."""
    for name, module in ALLOWED:
        assert module in {one.split(".")[0] for one in imports(SOURCES[name])}
    for name, modules in HOSTSIM_ALSO.items():
        assert set(modules) <= {one.split(".")[0] for one in imports(SOURCES[name])}
    for name in RAY_IN:
        assert "ray" in {one.split(".")[0] for one in imports(SOURCES[name])}


# Each rule can fail

BROKEN: list[tuple[Callable[[str, str], list[str]], str, str]] = [
    (imports_upwards, "hostsim.units", "import hostsim.config"),
    (imports_upwards, "hostsim.units", "from hostsim import config"),
    (imports_upwards, "hostsim.share", "from hostsim.allocate import divide"),
    (imports_upwards, "hostsim.share", "def f():\n    from hostsim.tick import step"),
    (imports_upwards, "hostsim.host", "from cluster.messages import Order"),
    (imports_upwards, "cluster.policy.state", "from cluster import coordinator"),
    (imports_upwards, "cluster.new", "from cluster.policy.state import obey"),
    (imports_upwards, "cluster.cli", "from cluster.new import thing"),
    (imports_beyond_its_room, "hostsim.share", "import ray"),
    (imports_beyond_its_room, "hostsim.share", "import os"),
    (imports_beyond_its_room, "hostsim.host", "from pathlib import Path"),
    (imports_beyond_its_room, "hostsim.swap", "import numba"),
    (imports_beyond_its_room, "cluster.coordinator", "import ray"),
    (imports_beyond_its_room, "cluster.studies.sweep", "import ray"),
    (imports_beyond_its_room, "cluster.fleet", "def f():\n    from ray.util import queue"),
    (uses_what_is_banned, "hostsim.tick", "import time"),
    (uses_what_is_banned, "hostsim.tick", "from datetime import datetime"),
    (uses_what_is_banned, "cluster.fleet", "import random"),
    (uses_what_is_banned, "cluster.fleet", "import uuid as u"),
    (uses_what_is_banned, "cluster.policy.planner", "import time"),
    (
        uses_what_is_banned,
        "cluster.policy.state",
        "import numpy as np\nx = np.random.default_rng(1)",
    ),
    (uses_what_is_banned, "cluster.policy.state", "from numpy import random\nimport random"),
    (uses_what_is_banned, "cluster.policy.state", "x = hash((1, 2))"),
    (uses_what_is_banned, "cluster.policy.state", "x = eval('1')"),
    (uses_what_is_banned, "cluster.policy.state", "exec('x = 1')"),
    (uses_what_is_banned, "cluster.tables", "import pickle"),
    (uses_what_is_banned, "cluster.tables", "x = np.load('a', allow_pickle=True)"),
    (uses_what_is_banned, "cluster.yaml_input", "x = yaml.load(text, Loader)"),
    (uses_what_is_banned, "cluster.yaml_input", "x = yaml.unsafe_load(text)"),
    (writes_its_parameters, "cluster.policy.planner", "def f(now):\n    now.host_of[3] = 1"),
    (writes_its_parameters, "cluster.policy.planner", "def f(now):\n    now.epoch = 1"),
    (writes_its_parameters, "cluster.policy.planner", "def f(now):\n    now.vms.count += 1"),
    (writes_its_parameters, "cluster.policy.planner", "def f(*, now):\n    a, now[0] = 1, 2"),
    (writes_its_parameters, "cluster.policy.planner", "def f(now):\n    v = now.vms\n    v[1] = 2"),
    (writes_its_parameters, "cluster.policy.planner", "def f(now):\n    now.orders.append(1)"),
    (writes_its_parameters, "cluster.policy.planner", "def f(now):\n    del now[1]"),
    (
        writes_its_parameters,
        "cluster.policy.planner",
        "def f(now):\n    for v in now:\n        v.x = 1",
    ),
    (writes_its_parameters, "hostsim.reclaim", "def f(target):\n    target[0] = 1"),
    (writes_its_parameters, "hostsim.allocate", "def f(shares, target):\n    shares[0] = 1"),
    (iterates_over_sets, "hostsim.a", "for x in {1, 2}:\n    pass"),
    (iterates_over_sets, "hostsim.a", "for x in set(y) - z:\n    pass"),
    (iterates_over_sets, "hostsim.a", "a = [x for x in {y for y in z}]"),
    (iterates_over_sets, "hostsim.a", "a = list(frozenset(y))"),
    (iterates_over_sets, "hostsim.a", "a = np.array([*set(y)])"),
    (iterates_over_sets, "hostsim.a", "a = ', '.join(set(y))"),
    (iterates_over_sets, "hostsim.a", "def f(y):\n    s = set(y)\n    return [x for x in s]"),
    (iterates_over_sets, "hostsim.a", "def f():\n    s: set[int] = set()\n    return tuple(s)"),
    (too_long, "cluster.a", "x = 1\n" * 351),
    (too_long, "cluster.a", "def f():\n" + "    x = 1\n" * 60),
]


@pytest.mark.parametrize(("rule", "name", "source"), BROKEN)
def test_a_source_that_breaks_a_rule_is_found(
    rule: Callable[[str, str], list[str]], name: str, source: str
) -> None:
    assert rule(name, source) != []


KEPT: list[tuple[Callable[[str, str], list[str]], str, str]] = [
    (imports_upwards, "hostsim.share", "import numpy\nfrom hostsim.state import FREE"),
    (imports_upwards, "hostsim.host", "from hostsim import contents, tick"),
    (imports_beyond_its_room, "cluster.actors", "import ray"),
    (imports_beyond_its_room, "hostsim.jit", "import os\nimport numba"),
    (uses_what_is_banned, "cluster.progress", "import time\ntime.monotonic()"),
    (uses_what_is_banned, "cluster.yaml_input", "yaml.safe_load(text)\nself.hash(3)"),
    (
        writes_its_parameters,
        "cluster.policy.planner",
        "def f(now):\n    a = []\n    a.append(now.x)",
    ),
    (writes_its_parameters, "cluster.policy.planner", "def f(now):\n    now = next_of(now)"),
    (writes_its_parameters, "cluster.policy.planner", "def f(now):\n    x = now.x + 1\n    x += 2"),
    (writes_its_parameters, "hostsim.allocate", "def f(n, target):\n    target[n] = 1"),
    (iterates_over_sets, "hostsim.a", "for x in sorted(set(y)):\n    pass"),
    (iterates_over_sets, "hostsim.a", "a = 3 in {1, 2} and len({4}) == 1"),
    (iterates_over_sets, "hostsim.a", "a = {x + 1 for x in {1, 2}}"),
    (too_long, "cluster.a", "def f():\n" + "    x = 1\n" * 59),
]


@pytest.mark.parametrize(("rule", "name", "source"), KEPT)
def test_a_source_that_keeps_a_rule_is_left_alone(
    rule: Callable[[str, str], list[str]], name: str, source: str
) -> None:
    assert rule(name, source) == []


# The repository


def tracked() -> list[str]:
    """Files of the repository, those not yet added included; skips without git."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no git repository here: {error}")
    return sorted(name for name in done.stdout.split("\0") if name and (ROOT / name).is_file())


def test_the_top_level_holds_what_it_may() -> None:
    assert out_of_place(tracked()) == []


def test_no_file_speaks_of_where_it_was_written() -> None:
    found = {
        name: words
        for name in tracked()
        if (words := workplace_words((ROOT / name).read_text(encoding="utf-8", errors="ignore")))
    }
    assert found == {}


def test_a_stray_file_or_word_is_found() -> None:
    assert out_of_place(["hostsim/a.py", ".ci/run", "notes/a.md", "x.py"]) == ["notes", "x.py"]
    for word in WORKPLACE:
        assert workplace_words(f"see {word}x") == [word]
    assert workplace_words("at work / in the library, farms") == []
