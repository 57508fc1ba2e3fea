"""When hosts fail: draws at a constant rate, and files that name failures."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scenario_files import changed, write

from cluster import outages
from cluster.population import populate
from cluster.scenario_file import ScenarioError, load

DAY = 86_400_000


def scenario_with(folder: Path, **failures: Any) -> Any:
    values = {"duration": "30 d", "epoch": "1 h", "availability": {"failures": failures}}
    return load(write(folder, changed(**values))).scenario


def test_failures_come_at_their_rate_whatever_went_before(tmp_path: Path) -> None:
    """400 hosts, 30 days, mean time 5 days plus 2 h of repair: 30 / 5.083 failures a host; times to
    the first are geometric, so their standard deviation is near their mean."""
    scenario = scenario_with(tmp_path, mean_time="5 d", repair="2 h")
    names = [f"esx-{number}" for number in range(400)]
    found = outages.drawn(scenario, names)
    assert len(found) / 400 == pytest.approx(30 / (5 + 2 / 24), rel=0.06)
    first: dict[int, int] = {}
    for one in found:
        first.setdefault(one.host, one.at_ms)
    days = np.array(list(first.values())) / DAY
    assert days.mean() == pytest.approx(5, rel=0.12)
    assert days.std() == pytest.approx(5, rel=0.15)
    for before, after in pairwise(found):
        assert before.host < after.host or after.at_ms >= before.at_ms + before.repair_ms


def test_draws_belong_to_the_seed_and_the_host(tmp_path: Path) -> None:
    scenario = scenario_with(tmp_path, mean_time="5 d")
    names = [f"esx-{number}" for number in range(50)]
    found = outages.drawn(scenario, names)
    assert outages.drawn(scenario, names) == found
    alone = outages.drawn(scenario, names[:1])
    assert alone == tuple(one for one in found if one.host == 0)
    other = scenario.model_copy(update={"seed": scenario.seed + 1})
    assert outages.drawn(other, names) != found


@pytest.mark.parametrize(("stays_up", "n"), [(0.5, 1), (0.5, 3), (0.999, 1000), (0.0, 1)])
def test_the_wait_is_the_first_epoch_at_which_the_chance_is_used_up(
    stays_up: float, n: int
) -> None:
    """P(n > m) = stays_up ** m: the word that is just above it comes a step earlier."""
    at = stays_up**n
    assert outages._epochs_until(stays_up, int(at * 2**64) + (1 << 20)) == n
    if 0 < at < 1:
        assert outages._epochs_until(stays_up, int(at * 2**64) - (1 << 20)) == n + 1


def test_a_host_that_always_fails_and_one_that_never_does(tmp_path: Path) -> None:
    names = ["a"]
    always = outages.drawn(scenario_with(tmp_path, mean_time="1 h", repair="1 h"), names)
    assert [one.at_ms for one in always] == [3_600_000 * at for at in range(1, 720, 2)]
    assert outages.drawn(scenario_with(tmp_path, mean_time="36500 d"), names) == ()


FILE = "at_s,host,repair_s\n600,esx-2,1200\n\n60,esx-1,0\n"


def traced(folder: Path, text: str) -> Any:
    (folder / "failures.csv").write_text(text, "utf-8")
    return load(write(folder, changed(availability={"trace": "failures.csv"})))


def test_a_file_names_failures(tmp_path: Path) -> None:
    loaded = traced(tmp_path, FILE)
    names = [host.name for host in populate(loaded).hosts]
    found = populate(loaded).outages
    assert [(names[one.host], one.at_ms, one.repair_ms) for one in found] == [
        ("esx-1", 60_000, 0),
        ("esx-2", 600_000, 1_200_000),
    ]
    assert traced(tmp_path, FILE + "700,esx-1,9\n").digest != loaded.digest
    assert traced(tmp_path, FILE.replace("\n\n", "\n")).digest == loaded.digest


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must be CSV with columns at_s, host, repair_s"),
        ("at,host,repair\n", "must be CSV with columns at_s, host, repair_s"),
        ("at_s,host,repair_s\n1,esx-1\n", "line 2: must have 3 values, not 2"),
        ("at_s,host,repair_s\n1,esx-99,1\n", "line 2: 'esx-99' is no host"),
        ("at_s,host,repair_s\n-1,esx-1,1\n", "line 2: at_s '-1' must be a whole number"),
        ("at_s,host,repair_s\n1,esx-1,1.5\n", "line 2: repair_s '1.5' must be a whole number"),
        ("\x00", "must be CSV"),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ScenarioError) as refused:
        traced(tmp_path, text)
    assert "availability.trace" in str(refused.value) and words in str(refused.value)


@pytest.mark.parametrize("name", ["../failures.csv", "/etc/passwd", "missing.csv"])
def test_a_file_outside_the_folder_or_missing_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "failures.csv").write_text(FILE, "utf-8")
    with pytest.raises(ScenarioError, match=r"availability\.trace"):
        load(write(tmp_path / "inside", changed(availability={"trace": name})))
