"""Settings of all tests: no network, and the same generated examples on every machine."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that requests the hub must fail, not wait

# The same examples on every machine, and no failure because a machine is slow.
settings.register_profile("steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


@pytest.fixture(autouse=True)
def _import_path_of_children() -> Iterator[None]:
    """`main` sets PYTHONSAFEPATH for the processes that it starts; children of other tests import modules of this folder."""
    before = os.environ.get("PYTHONSAFEPATH")
    yield
    if before is None:
        os.environ.pop("PYTHONSAFEPATH", None)
