"""The estimate of the bytes of activations, compared with the bytes that autograd keeps; the limit of tokens on a GPU."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from redistill.data.grouping import ACCELERATOR
from redistill.models.activations import activation_bytes, token_limit
from redistill.models.families import body
from redistill.models.recompute import checkpoint_activations
from redistill.runs import build
from redistill.runs.build import build_evaluator, build_parts
from redistill.runs.opened import open_run
from redistill.training.loop import cut
from tests.worlds import tiny_run

IDS_BT = torch.arange(4 * 32).reshape(4, 32) % 40


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "qwen3", "gemma2"])
def test_the_estimate_is_near_the_bytes_that_autograd_keeps(tiny, family: str) -> None:
    model, kept = tiny(family).train(), {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden_BTD = body(model)(IDS_BT, torch.ones_like(IDS_BT))
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    measured = sum(size for pointer, size in kept.items() if pointer not in weights) / IDS_BT.numel()
    assert hidden_BTD.requires_grad and 0.3 < activation_bytes(model, 4) / measured < 1.6


def test_checkpointing_needs_less(tiny) -> None:
    model = tiny("llama")
    whole = activation_bytes(model, 4)
    checkpoint_activations(model)
    assert activation_bytes(model, 4) < whole == 2 * activation_bytes(tiny("llama"), 2)


def test_a_7b_student_beside_a_13b_teacher_has_smaller_micro_batches() -> None:
    """7B with adapters in bf16 on 80 GB: 16,384 tokens would need 60 GB of activations."""
    config = AutoConfig.for_model("llama")  # 7B: 32 layers, width 4,096
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    token_bytes = activation_bytes(model, 2)
    weights = 2 * (7 + 13) * 10**9
    limit = token_limit(80 * 10**9, weights, token_bytes)
    assert 1024 <= limit < ACCELERATOR.max_tokens and weights + limit * token_bytes <= 80 * 10**9


def test_a_small_memory_gives_smaller_micro_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_run(tiny_run(tmp_path, "kd", training={"batch_size": 8})) as run:
        assert build.max_tokens(run) is None
        token_bytes = activation_bytes(run.models.student, 4)
        sizes = []
        for memory in (None, 2**40, 2 * 128 * token_bytes + 200 * run.models.student.num_parameters()):
            monkeypatch.setattr(build, "device_bytes", lambda device, memory=memory: memory)
            parts = build_parts(run, build_evaluator(run, run.models.student))
            if memory is not None and memory < 2**40:
                assert parts.learner.max_tokens is not None
                object.__setattr__(parts.learner, "max_tokens", 128)
            sizes.append([batch.input_ids_BT.numel() for batch in cut(parts.policy.draw(0), None, parts)])
    assert sizes[0] == sizes[1] and max(sizes[2]) <= 128 < max(sizes[0])
