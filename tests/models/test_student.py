"""A compiled body has the gradients of a plain one for any lengths, and falls back if it cannot be compiled."""

import pytest
import torch

from redistill.contracts import TokenSequence, items_of
from redistill.data.collate import collate
from redistill.models.student import StudentModule
from redistill.vocab_pass import CrossEntropyTerm


def learned(model: torch.nn.Module, setting: str, lengths: list[int]) -> list[torch.Tensor]:
    """The gradients that cross entropy of texts of these lengths gives."""
    model.zero_grad()
    texts = [
        TokenSequence(
            sample=i,
            token_ids=tuple(range(3, 3 + length)),
            supervised=(False,) + (True,) * (length - 1),
            origin="dataset",
        )
        for i, length in enumerate(lengths)
    ]
    batch = collate(items_of(texts, "sft"), pad_id=0)
    student = StudentModule(model, vocabulary=40, compile=setting)
    objective, _ = student(batch, None, [CrossEntropyTerm(1.0, batch.target_N, batch.sft_N)])
    objective.backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_a_compiled_body_has_the_gradients_of_a_plain_one(tiny):
    model = tiny("llama", num_hidden_layers=1).eval()
    for lengths in ([9, 5], [17, 3, 12]):
        plain = learned(model, "none", lengths)
        torch.testing.assert_close(learned(model, "all", lengths), plain, rtol=1e-4, atol=1e-5)


def test_a_body_that_cannot_be_compiled_runs_uncompiled_with_one_warning(tiny, monkeypatch):
    def refuse(graph, inputs):
        raise RuntimeError("no compiler here")

    model, compile_ = tiny("gpt2", num_hidden_layers=1).eval(), torch.compile
    plain = learned(model, "none", [9, 5])
    monkeypatch.setattr(torch, "compile", lambda call, **settings: compile_(call, backend=refuse))
    with pytest.warns(UserWarning, match="the body cannot be compiled"):
        torch.testing.assert_close(learned(model, "all", [9, 5]), plain, rtol=1e-4, atol=1e-5)
