"""Integration tests run on the CPU, even if the machine has a GPU."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def _without_gpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield
