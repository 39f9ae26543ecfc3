"""pass@k against the definition: the fraction of subsets of k answers with a correct one."""

from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from redistill.evaluation.metrics import METRICS
from redistill.evaluation.pass_at_k import pass_at_k, pass_scores
from redistill.evaluation.scores import EvaluationConfig
from redistill.storage import files
from tests.evaluation.test_evaluation import run


@pytest.mark.parametrize("samples", [1, 2, 5, 7])
def test_it_is_the_fraction_of_subsets_with_a_correct_answer(samples: int) -> None:
    for correct in range(samples + 1):
        answers = [True] * correct + [False] * (samples - correct)
        for k in range(1, samples + 1):
            assert pass_at_k(correct, samples, k) == pytest.approx(fmean(any(found) for found in combinations(answers, k)))


def test_it_grows_with_k_and_begins_at_the_mean() -> None:
    values = [pass_at_k(3, 20, k) for k in range(1, 21)]
    assert values[0] == pytest.approx(3 / 20) and values == sorted(values) and values[-1] == 1


def test_scores_have_it_for_correctness_alone_and_as_the_answers_give_it(tokenizer: Any, tmp_path: Path) -> None:
    config = EvaluationConfig(seeds=(10, 20, 30), batch_size=2)
    scores = run(tokenizer, tmp_path, config=config)["datasets"]["dolly"]
    assert {name: list(found) for name, found in scores["pass_at"].items()} == {"exact_match": ["2", "3"]}
    marks: dict[str, list[bool]] = {}
    for seed in config.seeds:
        for line in files.read_lines(tmp_path / f"responses/dolly-seed{seed}.jsonl"):
            marks.setdefault(line["id"], []).append(bool(line["exact_match"]))
    for k in (2, 3):
        expected = fmean(any(found) for answers in marks.values() for found in combinations(answers, k))
        assert scores["pass_at"]["exact_match"][str(k)] == pytest.approx(expected)


def test_one_seed_has_none(tokenizer: Any, tmp_path: Path) -> None:
    assert "pass_at" not in run(tokenizer, tmp_path, config=EvaluationConfig(seeds=(10,), batch_size=2))["datasets"]["dolly"]
    assert pass_scores([[{"id": "a", "rouge_l": 1.0}]] * 2, [METRICS["rouge_l"]]) == {}


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.binary])
def test_a_binary_metric_returns_0_or_1(name: str) -> None:
    from redistill.records import Instruction, Record

    record = Record(record_id="a", prompt=Instruction(instruction="How many?"), references=("7 eggs",))
    assert {METRICS[name].scored(answer, record) for answer in ("7 eggs", "8 eggs", "")} == {0.0, 1.0}
