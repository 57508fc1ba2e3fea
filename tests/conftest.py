"""Kernels are compiled once, before any test: processes that tests start find them in the cache."""

from __future__ import annotations

import pytest
from hypothesis import settings

from hostsim.host import warm

# The first example of a test may have to compile what it calls.
settings.register_profile("compiling", deadline=None)
settings.load_profile("compiling")


@pytest.fixture(scope="session", autouse=True)
def kernels() -> None:
    """Compile the kernels, or load them from the cache."""
    warm(lambda text: None)
