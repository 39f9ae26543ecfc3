"""A run with the prefix memory equals a run without it."""

from contextlib import contextmanager

import pytest
import torch

import redistill.runs.build
from redistill.runs.build import build_evaluator, build_parts
from redistill.runs.opened import open_run
from redistill.training.loop import cut
from tests.worlds import GPT2, LLAMA, tiny_run

OPT = {
    "model_type": "opt",
    "hidden_size": 32,
    "ffn_dim": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "word_embed_proj_dim": 32,
}
MISTRAL = {**LLAMA, "model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 24}
ALL_REVISED = {"policy": {"kind": "revised", "rounds": 2}}


@contextmanager
def tokens_read(*models):
    """The number of tokens of each forward pass while this is open, padding included, as a list."""
    read = []

    def note(module, args, kwargs):
        read.append(kwargs["input_ids"].numel())

    hooks = [model.base_model.register_forward_pre_hook(note, with_kwargs=True) for model in models]
    try:
        yield read
    finally:
        for hook in hooks:
            hook.remove()


def drawn(config, monkeypatch, *, remembers):
    """Two steps' sequences, the teacher's statistics on them, and the number of tokens that both models processed."""
    if not remembers:
        monkeypatch.setattr(redistill.runs.build, "revises", lambda node: False)
    with open_run(config) as run:
        parts, told, texts = build_parts(run, build_evaluator(run, run.models.student)), [], []
        with tokens_read(run.models.teacher, run.models.student) as read:
            for step in range(2):
                draw = parts.policy.draw(step)
                texts += [(sequence.origin, sequence.token_ids) for sequence in draw.with_role("distillation")]
                batch = cut(draw, 2, parts)
                for each in batch:
                    target = run.teacher.rows(each)
                    told.append(target(slice(0, each.num_sampled_rows)).log_softmax(dim=-1))
                with torch.no_grad():  # like an update: states from before it must not be used after it
                    for parameter in run.student.model.parameters():
                        parameter.mul_(1.1)
        return texts, torch.cat(told), sum(read)


@pytest.mark.parametrize("family", [LLAMA, GPT2, OPT, MISTRAL], ids=["llama", "gpt2", "opt", "sliding window"])
def test_texts_and_teacher_statistics_are_the_same(tmp_path, monkeypatch, family):
    unlogged = {"measure": {"positions_bytes": 0}}  # the log of divergences by token reads texts, too
    run = tiny_run(tmp_path, config=family, evaluation=unlogged, **ALL_REVISED)
    texts, told_NV, read = drawn(run, monkeypatch, remembers=True)
    plain_texts, plain_NV, plainly_read = drawn(run, monkeypatch, remembers=False)
    assert texts == plain_texts and any(origin == "revised" for origin, _ in texts)
    torch.testing.assert_close(told_NV, plain_NV, rtol=1e-5, atol=1e-5)
    assert read == plainly_read if family is MISTRAL else read < 0.6 * plainly_read
