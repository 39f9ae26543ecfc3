"""The target of TAID: its gradient, its schedule, its adaptation to the loss, and that a resumed run has the same."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from redistill.contracts import ORIGINS, RowContext, TokenSequence, items_of
from redistill.data.collate import collate
from redistill.errors import ConfigError
from redistill.losses.divergences import ByOrigin, ForwardKL, Taid
from redistill.storage import files
from redistill.testing.divergences import log_rows
from redistill.training.curriculum import Curriculum
from redistill.training.objective import Counts, Objective, terms
from redistill.vocab_pass import Head, vocab_pass
from tests.faults.part_of_a_run import train_until
from tests.faults.test_resume_matrix import UPDATES, Straight


@given(progress=st.floats(0, 1), t_start=st.floats(0.01, 0.9), seed=st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_value_and_gradient_are_those_of_a_constant_target(progress: float, t_start: float, seed: int) -> None:
    logits_NV, logp_NV = log_rows(seed).requires_grad_(), log_rows(seed + 1)
    context = RowContext(torch.zeros(5, dtype=torch.int64), torch.full((5,), progress, dtype=torch.float64))
    found_N = Taid(t_start=t_start)(logits_NV.log_softmax(-1), logp_NV, context)
    (gradient_NV,) = torch.autograd.grad(found_N.sum(), logits_NV)
    q_NV, p_NV = (np.exp(rows.detach().numpy()) for rows in (logits_NV, logp_NV))
    t = t_start + (1 - t_start) * progress
    target_NV = q_NV ** (1 - t) * p_NV**t
    target_NV /= target_NV.sum(-1, keepdims=True)
    np.testing.assert_allclose(found_N.detach(), (target_NV * np.log(target_NV / q_NV)).sum(-1), atol=1e-8)
    np.testing.assert_allclose(gradient_NV, q_NV - target_NV, atol=1e-8)  # of a cross entropy with a constant target


@given(st.lists(st.floats(0, 10), min_size=1, max_size=12), st.floats(0, 1), st.floats(0, 0.99))
@settings(max_examples=60, deadline=None)
def test_the_adaptation_equals_a_loop_and_never_falls_below_the_schedule(
    losses: list[float], adaptation: float, momentum: float
) -> None:
    node = Taid(t_start=0.4, t_end=0.9, adaptation=adaptation, momentum=momentum)
    curriculum, t, m, last = Curriculum(node, len(losses)), 0.4, 0.0, None
    for step, loss in enumerate(losses):
        t = max(t, 0.4 + 0.5 * step / max(1, len(losses) - 1))
        assert node.share(curriculum.progress(step)) == pytest.approx(t, abs=1e-8)
        curriculum.observe(step, loss)
        curriculum.observe(step, math.nan)  # an update that is not finite changes nothing
        if last is not None:
            m = momentum * m + (1 - momentum) * (last - loss) / max(last, 1e-15)
            t = min(0.9, t + adaptation * (1 / (1 + math.exp(-m)) if m > -700 else 0.0) * (1 - t))
        last = loss


def test_the_schedule_alone_has_no_state_and_ends_at_1() -> None:
    curriculum = Curriculum(Taid(adaptation=0.0), updates=3)
    curriculum.observe(0, 2.0)
    assert [curriculum.progress(step) for step in range(3)] == [0.0, 0.5, 1.0] and curriculum.state_dict() == {}
    assert Curriculum(ForwardKL(), updates=1).metrics(0) == {} and Curriculum(ForwardKL(), updates=1).progress(0) == 0.0


def test_a_restored_state_continues_equally() -> None:
    one, other = (Curriculum(Taid(adaptation=0.3), updates=50) for _ in range(2))
    for step in range(4):
        one.observe(step, 2.0 / (step + 1))
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for step in range(4, 8):
        one.observe(step, 1.0 / step)
        other.observe(step, 1.0 / step)
        assert one.progress(step + 1) == other.progress(step + 1) > (step + 1) / 49


def test_progress_reaches_the_divergence_also_inside_by_origin() -> None:
    sampled = [
        TokenSequence(sample=0, token_ids=(1, 3, 4), supervised=(False, True, True), origin=origin) for origin in ORIGINS[:3]
    ]
    batch = collate(items_of(sampled, "distillation"), pad_id=0)
    hidden_ND, logits_NV = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    for node in (Taid(), ByOrigin(student=Taid(), teacher=Taid())):
        objective = Objective(sft_weight=0.0, divergence=node)
        for progress, expected in ((0.0, Taid()), (1.0, ForwardKL())):
            found = terms(objective, Counts.of([batch]), batch, objective.build_divergence(4, 0), progress)
            total, _ = vocab_pass(hidden_ND, Head(torch.eye(4, dtype=torch.float64)), lambda rows: logits_NV[rows], found)
            wanted = expected(hidden_ND.log_softmax(-1), logits_NV.log_softmax(-1)).mean()
            assert float(total) == pytest.approx(float(wanted), abs=1e-8)


def test_a_resumed_run_has_the_same_target(tmp_path: Path) -> None:
    straight = Straight(tmp_path, ("TAID", 1, "fp32"))
    shares = [line["teacher_share"] for line in files.read_lines(straight.folder / "metrics.jsonl") if line["kind"] == "train"]
    assert shares[0] == 0.4 and shares == sorted(shares)
    assert shares[3] > 0.4 + 0.6 * 3 / (UPDATES - 1), "it is ahead of the schedule"
    folder, recipe = straight.stopped_behind(3)
    train_until(recipe, 5, world=1)
    assert straight.held_against(folder, 5) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"t_start": 0.0}, "t_start = 0.0: must lie in "),
        ({"t_end": 0.4}, "t_end = 0.4: must lie above t_start"),
        ({"t_end": 1.1}, "t_end = 1.1: must lie above t_start and be at most 1"),
        ({"adaptation": float("nan")}, "adaptation = nan: must lie in "),
        ({"momentum": 1.0}, "momentum = 1.0: must be at least 0 and below 1"),
    ],
)
def test_settings_out_of_range_are_rejected(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Taid(**fields)
