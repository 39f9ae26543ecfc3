"""What only an accelerator can show: bf16 products with fp32 results, a run on the device, batches that change no text."""

from pathlib import Path
from typing import Any

import pytest
import torch

from redistill.contracts import GenerationRequest, Sampling
from redistill.generation.generate import generate
from redistill.generation.prefix import PrefixMemory
from redistill.losses.divergences import ForwardKL, JensenShannon
from redistill.models.initialise import fresh_model
from redistill.models.static_cache import StaticBodies
from redistill.runs.run import train_student
from redistill.vocab_pass import (
    NUMBERS_PER_DRAW,
    CrossEntropyTerm,
    DivergenceTerm,
    Head,
    dense_reference,
    sample_rows,
    vocab_pass,
)
from tests.worlds import LLAMA, tiny_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


def test_gradients_from_bf16_weights_are_those_of_float64() -> None:
    num_rows, width, classes = 96, 64, 3000
    torch.manual_seed(1)
    hidden_ND = torch.randn(num_rows, width, device="cuda").bfloat16()
    weight_VD = (torch.randn(classes, width, device="cuda") / 8).bfloat16()
    nudged_VD = weight_VD.double() + 0.01 * torch.randn_like(weight_VD, dtype=torch.float64) / 8
    logp_NV = torch.log_softmax(hidden_ND.double() @ nudged_VD.T, dim=-1)
    target_N = torch.randint(classes, (num_rows,), device="cuda")

    def gradients(dtype: torch.dtype, *, dense: bool) -> list[torch.Tensor]:
        hidden, weight = (t.to(dtype).detach().requires_grad_() for t in (hidden_ND, weight_VD))
        terms = (
            CrossEntropyTerm(0.01 / num_rows, target_N, torch.ones_like(target_N, dtype=torch.bool)),
            DivergenceTerm(1 / num_rows, ForwardKL(), num_rows),
        )
        logp = logp_NV if dtype == torch.float64 else logp_NV.float()
        walk = dense_reference if dense else vocab_pass
        objective, _ = walk(hidden, Head(weight), lambda rows: logp[rows], terms)
        objective.backward()
        return [t.grad.double() for t in (hidden, weight) if t.grad is not None]

    for ours, exact in zip(gradients(torch.bfloat16, dense=False), gradients(torch.float64, dense=True), strict=True):
        assert (ours - exact).norm() < 0.01 * exact.norm()


@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_added_in_place_are_those_of_the_dense_pass(compiled: bool) -> None:
    num_rows, width, classes = 80, 64, 20_000
    torch.manual_seed(2)
    hidden_ND, weight_VD = torch.randn(num_rows, width, device="cuda"), torch.randn(classes, width, device="cuda") / 8
    logp_NV = torch.log_softmax(hidden_ND @ (weight_VD + 0.05 * torch.randn_like(weight_VD)).T, dim=-1)
    terms = (DivergenceTerm(1 / num_rows, JensenShannon(), num_rows),)

    def gradients(*, dense: bool) -> list[torch.Tensor]:
        hidden, weight = (t.clone().requires_grad_() for t in (hidden_ND, weight_VD))
        inputs = hidden, Head(weight), lambda rows: logp_NV[rows], terms
        options: dict[str, Any] = {"chunk_bytes": 2**24, "compiled": compiled, "into_grad": True}
        objective, _ = dense_reference(*inputs) if dense else vocab_pass(*inputs, **options)
        objective.backward()
        return [t.grad for t in (hidden, weight) if t.grad is not None]

    for ours, exact in zip(gradients(dense=False), gradients(dense=True), strict=True):
        assert (ours - exact).norm() < 1e-4 * exact.norm()


def test_a_run_in_bf16_trains_on_the_device(tmp_path: Path) -> None:
    folder = train_student(tiny_run(tmp_path, training={"updates": 3, "precision": "bf16"}))
    assert (folder / "model.safetensors").exists()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert sum('"kind": "train"' in line for line in lines) == 3


def test_generated_text_depends_on_neither_the_batch_nor_the_caches() -> None:
    config = {**LLAMA, "vocab_size": 300, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    model = fresh_model(config, 1).cuda()
    requests = [
        GenerationRequest(prompt_ids=tuple(range(5, 9 + i)), max_new_tokens=24, seed=3, stream=("test", i)) for i in range(8)
    ]
    memory, static, compiled = PrefixMemory(), StaticBodies("static"), StaticBodies("compiled")
    texts = [
        generate(model, requests, Sampling(), end_ids=(0,), pad_id=0, batch_size=size, memory=kept, static=bodies)
        for size, kept, bodies in (
            (1, None, None),
            (3, None, None),
            (8, memory, None),
            (8, memory, None),
            (8, None, static),
            (8, None, compiled),
            (8, None, compiled),
        )
    ]
    assert all(text == texts[0] for text in texts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tokens_are_those_that_the_processor_draws(dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(4)
    probabilities_NV = torch.rand(200, 50_000, generator=random, dtype=dtype) ** 8
    numbers_NK = torch.rand(200, NUMBERS_PER_DRAW, generator=random, dtype=torch.float64)
    drawn_N = sample_rows(probabilities_NV.cuda(), numbers_NK.cuda())
    assert torch.equal(drawn_N.cpu(), sample_rows(probabilities_NV, numbers_NK))
