"""Blocks and tiles of rows: on an accelerator a tile is a block, and all its tensors together stay within the memory limit."""

import pytest
import torch

from redistill.losses.divergences import ForwardKL
from redistill.losses.span import SpanConfig, pair_weights
from redistill.vocab_pass import (
    CrossEntropyTerm,
    DivergenceTerm,
    Head,
    SpanTerm,
    cutting,
    dense_reference,
    head,
    vocab_pass,
    walk,
)
from redistill.vocab_pass.head import Products

CLASSES = (32_000, 50_257, 151_936, 262_144)
LIMITS = (192 * 2**20, 2**30, 80 * 2**30 // cutting.DEVICE_PART)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("limit", LIMITS)
def test_a_tile_of_an_accelerator_is_a_block_within_the_limit(limit: int, classes: int, compiled: bool) -> None:
    block, tile = cutting.cut_rows(limit, 4 * classes, compiled, "cuda")
    tensors = cutting.BLOCK_TENSORS + (cutting.COMPILED_TENSORS if compiled else cutting.TILE_TENSORS)
    assert block == tile > 1
    assert tensors * tile * 4 * classes <= limit < tensors * (tile + cutting.ALIGNED_ROWS) * 4 * classes


def test_an_accelerator_visits_few_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """4,096 rows of 151,936 classes, width 1,536: on a CPU, a tile has 8 rows."""
    monkeypatch.setattr(cutting, "device_bytes", lambda device: None if device == "cpu" else 80 * 2**30)
    tiles = {}
    for device in ("cpu", "cuda"):
        limit = cutting.chunk_budget(4 * 151_936 * 1_536, device)
        tiles[device] = len(cutting.cuts(slice(0, 4096), cutting.cut_rows(limit, 4 * 151_936, False, device).tile))
    assert tiles == {"cpu": 512, "cuda": 14}


@pytest.mark.parametrize("tile", [8, 24, 256, 1000])
def test_a_compiled_tile_has_one_of_three_sizes(tile: int) -> None:
    sizes = [cutting.padded_rows(rows, tile, "cuda") for rows in range(1, tile + 1)]
    assert all(size >= rows and size % cutting.ALIGNED_ROWS == 0 for rows, size in enumerate(sizes, start=1))
    assert max(sizes) == tile and len(set(sizes)) <= 3
    assert {cutting.padded_rows(rows, tile, "cpu") for rows in range(1, tile + 1)} == {tile}


@pytest.mark.parametrize("compiled", [False, True])
def test_the_tiles_of_an_accelerator_change_no_gradient(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    random, visited = torch.Generator().manual_seed(1), []
    hidden_ND, weight_VD = (torch.randn(rows, 6, generator=random, dtype=torch.float64) for rows in (40, 11))
    logp_NV = torch.log_softmax(torch.randn(30, 11, generator=random, dtype=torch.float64), dim=-1)
    target_N = torch.randint(11, (40,), generator=random)
    weights_N = pair_weights([(2, 17), (15, 29)], 30, SpanConfig())
    terms = (
        CrossEntropyTerm(0.3, target_N, target_N > 3),
        DivergenceTerm(0.5, ForwardKL(), 30),
        SpanTerm(0.7, weights_N, False),
    )
    visit, row = walk.visit, 8 * 11
    monkeypatch.setattr(
        walk, "visit", lambda core, tile, *rest: (visited.append(len(tile.raw_CV)), visit(core, tile, *rest))[1]
    )
    monkeypatch.setattr(walk, "cut_rows", lambda limit, size, compiled, device: cutting.cut_rows(limit, size, compiled, "cuda"))
    monkeypatch.setattr(walk, "padded_rows", lambda rows, tile, device: cutting.padded_rows(rows, tile, "cuda"))

    def gradients(*, dense: bool) -> list[torch.Tensor]:
        hidden, weight = (tensor.clone().requires_grad_() for tensor in (hidden_ND, weight_VD))
        inputs = hidden, Head(weight), lambda rows: logp_NV[rows], terms
        limit = 16 * 12 * row
        objective, _ = dense_reference(*inputs) if dense else vocab_pass(*inputs, limit, compiled=compiled)
        return list(torch.autograd.grad(objective, (hidden, weight)))

    torch.testing.assert_close(gradients(dense=False), gradients(dense=True), rtol=1e-9, atol=1e-9)
    assert max(visited) > 8 and len(visited) <= 4


def test_a_gradient_is_added_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU multiplies bf16 operands into a new float32 tensor; its size is limited, whatever the size of the head."""
    products, sizes = Products("cuda", True, torch.float32), []

    def product(self: Products, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        sizes.append(len(left) * right.shape[1] * 4)
        return left.float() @ right.float()

    monkeypatch.setattr(Products, "__call__", product)
    monkeypatch.setattr(head, "PART_BYTES", 4 * 5 * 16)
    left, right = torch.randn(50, 7).bfloat16(), torch.randn(7, 5).bfloat16()
    total = torch.ones(50, 5)
    with torch.no_grad():
        products.accumulate(total, left, right)
    torch.testing.assert_close(total, 1 + left.float() @ right.float())
    assert len(sizes) == 4 and max(sizes) <= head.PART_BYTES
