"""Kernels are compiled once, before any test: processes that tests start find them in the cache."""

from __future__ import annotations

import os
from unittest import mock

import pytest
from hypothesis import settings

from cluster import ray_environment
from hostsim.host import warm

# The first example of a test may have to compile what it calls.
settings.register_profile("compiling", deadline=None)
settings.load_profile("compiling")


@pytest.fixture(scope="session", autouse=True)
def kernels() -> None:
    """Compile the kernels, or load them from the cache."""
    warm(lambda text: None)


@pytest.fixture(scope="session")
def ray_ready() -> None:
    """Ray, imported as the command does it: it reads its environment once in a process, and other
    tests start clusters in this one."""
    with mock.patch.dict(os.environ):
        ray_environment.prepare(own_cluster=True)
        from ray._private.authentication.authentication_utils import is_token_auth_enabled

        assert is_token_auth_enabled()
