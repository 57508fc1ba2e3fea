"""The audit of dependencies: what is found fails, and what could not be looked up is not silent."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def package(name: str, *found: str) -> dict[str, Any]:
    vulns = [{"id": one, "fix_versions": ["2.0"], "aliases": []} for one in found]
    return {"name": name, "version": "1.0", "vulns": vulns}


UNKNOWN = {"name": "b", "skip_reason": "Dependency not found on PyPI"}


def test_what_is_known_fails(audit: ModuleType) -> None:
    report = {"dependencies": [package("a"), UNKNOWN, package("c", "CVE-1", "CVE-2")]}
    assert audit.verdict(report) == (
        1,
        [
            "AUDIT: known vulnerabilities in requirements.lock:",
            "c 1.0: CVE-1, mended in 2.0",
            "c 1.0: CVE-2, mended in 2.0",
        ],
    )


@pytest.mark.parametrize("packages", [[], [UNKNOWN], [package("a"), UNKNOWN]])
def test_what_was_not_looked_up_is_told(audit: ModuleType, packages: list[Any]) -> None:
    code, (line,) = audit.verdict({"dependencies": packages})
    assert code == 0 and line.startswith("AUDIT NOT DONE: ")


def test_a_clean_report_says_of_how_many(audit: ModuleType) -> None:
    report = {"dependencies": [package("a"), package("b")]}
    assert audit.verdict(report) == (0, ["AUDIT: no known vulnerability in 2 packages"])


def test_an_audit_that_cannot_be_made_does_not_fail(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise subprocess.CalledProcessError(1, "pip")

    monkeypatch.setattr(audit, "audit", fails)
    assert audit.main() == 0
    assert (
        "AUDIT NOT DONE: pip-audit gave no report (CalledProcessError)" in capsys.readouterr().err
    )


@pytest.mark.parametrize("lock", ["requirements.lock", ".ci/audit.lock"])
def test_every_pin_has_a_hash(lock: str) -> None:
    pins = re.split(r"\n(?=[A-Za-z0-9])", (ROOT / lock).read_text("utf-8").split("\n", 3)[3])
    assert len(pins) > 20
    assert [
        pin for pin in pins if not re.match(r"[\w.-]+==\S+ .*\\\n    --hash=sha256:", pin)
    ] == []
