"""Kernels are compiled once, before any test: processes that tests start find them in the cache."""

from __future__ import annotations

import pytest

from hostsim.host import warm


@pytest.fixture(scope="session", autouse=True)
def kernels() -> None:
    """Compile the kernels, or load them from the cache."""
    warm(lambda text: None)
