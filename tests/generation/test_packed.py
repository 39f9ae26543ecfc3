"""Packed layers use copies of their weights inside the context only."""

import pytest
import torch
from torch import nn

from redistill.generation import packed
from redistill.generation.packed import packed_layers


def two_layers():
    return nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16, bias=False))


def test_a_packed_body_equals_a_plain_one():
    body, x = two_layers(), torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    plain = body(x)
    with packed_layers(body), torch.no_grad():
        torch.testing.assert_close(body(x), plain, rtol=1e-5, atol=1e-6)


def test_no_layer_keeps_its_copy_where_memory_runs_out_midway(monkeypatch):
    if not packed.can_pack(torch.zeros(16, 16), torch.float32):
        pytest.skip("no packed layout here")
    body, made, whole = two_layers(), [], packed.packed_product

    def short_of_memory(*arguments):
        made.append(arguments)
        if len(made) == 2:
            raise MemoryError("can't allocate memory")
        return whole(*arguments)

    monkeypatch.setattr(packed, "packed_product", short_of_memory)
    with pytest.raises(MemoryError), packed_layers(body):
        raise AssertionError("it was entered")
    body(torch.ones(1, 16)).sum().backward()
    assert all(parameter.grad is not None for parameter in body.parameters())
    with packed_layers(body):
        assert len(made) == 4, "both layers are packed the next time"
