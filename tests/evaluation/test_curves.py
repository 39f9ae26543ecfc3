"""Calibration, entropy and overlap: their definitions, by float64 oracles."""

from typing import Any

import numpy as np
import pytest
import torch

from redistill.config.run import decode_run
from redistill.data.tokenize import tokenize_training
from redistill.evaluation.calibration import NUM_BINS, calibration_error, calibration_gaps
from redistill.evaluation.gold import teacher_forced
from tests.evaluation.test_acceptance import LEAST
from tests.evaluation.test_evaluation import TOKENS, network, records, teacher

ALL = ("acceptance", "calibration", "entropy", "overlap")


@pytest.mark.parametrize("seed", range(4))
def test_the_calibration_error_is_that_of_its_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    confidence = np.concatenate([rng.uniform(0, 1, 200), [0.0, 1.0]])
    is_right = rng.uniform(0, 1, 202) < confidence**2
    gaps = calibration_gaps(torch.from_numpy(confidence), torch.from_numpy(is_right))
    expected = 0.0
    for index in range(NUM_BINS):
        inside = (confidence >= index / NUM_BINS) & ((confidence < (index + 1) / NUM_BINS) | (index == NUM_BINS - 1))
        expected += inside.mean() * abs(is_right[inside].mean() - confidence[inside].mean()) if inside.any() else 0.0
    found = calibration_error({name: float(value.sum()) for name, value in gaps.items()}, len(confidence))
    assert found == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("batch_size", [1, 16])
def test_scores_are_means_over_the_targets_of_the_gold_answers(tokenizer: Any, batch_size: int) -> None:
    examples, _ = tokenize_training(records(), tokenizer, TOKENS, seed=0)
    student, other = network(0), network(1)
    found = teacher_forced(student, teacher(), examples, batch_size=batch_size, extra=ALL)
    alone = teacher_forced(student, None, examples, batch_size=batch_size, extra=ALL)
    entropies, overlaps, confidence, is_right = ([], []), [], [], []
    for example in examples:
        logits = [m.double()(torch.tensor([example.token_ids])).logits[0].detach() for m in (student, other)]
        q, p = (torch.softmax(each, -1).numpy() for each in logits)
        for i in np.flatnonzero(example.supervised):
            for values, row in zip(entropies, (q[i - 1], p[i - 1]), strict=True):
                values.append(-(row * np.log(row)).sum())
            overlaps.append(len({*np.argsort(-q[i - 1])[:10]} & {*np.argsort(-p[i - 1])[:10]}) / 10)
            confidence.append(q[i - 1].max())
            is_right.append(q[i - 1].argmax() == example.token_ids[i])
    gaps = calibration_gaps(torch.tensor(confidence), torch.tensor(is_right))
    ece = calibration_error({name: float(value.sum()) for name, value in gaps.items()}, len(confidence))
    assert [found[name] for name in ("student_entropy", "teacher_entropy", "top_overlap", "ece")] == pytest.approx(
        [np.mean(entropies[0]), np.mean(entropies[1]), np.mean(overlaps), ece], rel=1e-5
    )
    assert alone == {name: found[name] for name in ("cross_entropy", "student_entropy", "ece")}


def test_scores_of_the_student_alone_need_no_teacher() -> None:
    tree = LEAST | {"method": "sft", "teacher": None, "evaluation": {"teacher_forced": ["calibration", "entropy"]}}
    assert decode_run(tree, "test").evaluation.teacher_forced == ("calibration", "entropy")
