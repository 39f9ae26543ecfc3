"""Gradient checkpointing keeps fewer activations, in training mode and in eval mode, and changes no gradient."""

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaMLP

from redistill.models.families import body
from redistill.models.recompute import checkpoint_activations, recomputing
from redistill.runs.run import train_student
from tests.worlds import tiny_run

IDS_BT = torch.arange(2 * 24).reshape(2, 24) % 40


def learned(model, *, training: bool) -> tuple[int, list[torch.Tensor]]:
    """The bytes of the activations that autograd keeps for the backward pass, and the gradients."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model.train(training)
    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), recomputing(model):
        total = body(model)(IDS_BT, torch.ones_like(IDS_BT)).square().sum()
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    total.backward()
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    return sum(size for pointer, size in kept.items() if pointer not in weights), gradients


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_recomputed_activations_are_not_kept(tiny, family: str, training: bool) -> None:
    plain, checkpointed = tiny(family), tiny(family)
    checkpoint_activations(checkpointed)
    kept, gradients = learned(plain, training=training)
    kept_less, recomputed = learned(checkpointed, training=training)
    assert kept_less < 0.5 * kept
    for gradient, other in zip(gradients, recomputed, strict=True):
        torch.testing.assert_close(other, gradient, rtol=1e-5, atol=1e-7)


def test_outside_of_the_context_layers_are_unchanged(tiny) -> None:
    model = tiny("llama")
    checkpoint_activations(model)
    before = [set(vars(layer)) for layer in model.modules()]
    with pytest.raises(KeyError), recomputing(model.eval()):
        raise KeyError
    assert [set(vars(layer)) for layer in model.modules()] == before


def test_minillm_recomputes_activations(tmp_path, monkeypatch) -> None:
    """MiniLLM trains in eval mode; with checkpointing, each layer runs twice in an update."""
    runs, forward = [], LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: (runs.append(torch.is_grad_enabled()), forward(self, x))[1])
    counts = []
    for checkpointing in (False, True):
        runs.clear()
        student, training = {"gradient_checkpointing": checkpointing}, {"updates": 1, "batch_size": 2}
        policy = {"kind": "rollouts", "source": "teacher_mixed", "num_rollouts": 2, "inner_epochs": 1}
        train_student(tiny_run(tmp_path, "minillm", out=str(checkpointing), student=student, training=training, policy=policy))
        counts.append(sum(runs))
    assert 0 < 2 * counts[0] == counts[1]
