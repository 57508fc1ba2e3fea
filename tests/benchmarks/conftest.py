"""Benchmarks share one set of tables, printed and written at the end. See `measuring`."""

from __future__ import annotations

import pytest
from measuring import Tables

_TABLES = pytest.StashKey[Tables]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_TABLES] = Tables()


@pytest.fixture(scope="session")
def tables(pytestconfig: pytest.Config) -> Tables:
    """Where results go."""
    if hasattr(pytestconfig, "workerinput"):
        pytest.fail("benchmarks that run side by side disturb each other: use -n 0")
    return pytestconfig.stash[_TABLES]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    found = config.stash[_TABLES]
    if found.rows:
        terminalreporter.write_line(f"\n{found.text()}")
        terminalreporter.write_line(f"written to {found.write()}")
