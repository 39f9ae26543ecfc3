"""Fault tests are about the CPU, whatever else this machine has."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def _without_gpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield
