"""Each run has its own precision, whatever ran before it in the same process."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, PartialState

from redistill.evaluation.scores import EvaluationConfig
from redistill.models.load import ModelConfig
from redistill.runs.opened import make_accelerator
from redistill.runs.run import evaluate_model, train_student
from tests.worlds import tiny_run


@pytest.fixture
def precisions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What each block under an accelerator's autocast was computed in."""
    seen: list[str] = []
    plain = Accelerator.autocast

    def watched(accelerator: Accelerator, *arguments: Any, **options: Any) -> Any:
        seen.append(accelerator.mixed_precision)
        return plain(accelerator, *arguments, **options)

    monkeypatch.setattr(Accelerator, "autocast", watched)
    return seen


def test_a_run_in_fp32_after_one_in_bf16(tmp_path: Path, precisions: list[str]) -> None:
    for out, precision in (("first", "bf16"), ("second", "fp32"), ("third", "bf16")):
        precisions.clear()
        config = tiny_run(tmp_path, "sft", out=out, training={"updates": 1, "precision": precision})
        assert (train_student(config) / "config.json").is_file()
        assert set(precisions) == {"bf16" if precision == "bf16" else "no"}


def test_an_evaluation_does_not_inherit_the_precision_of_a_run(tmp_path: Path, precisions: list[str]) -> None:
    config = tiny_run(tmp_path, "sft", training={"precision": "bf16"})
    make_accelerator("bf16")
    model = ModelConfig(model=str(tmp_path / "student"))
    evaluate_model(model, config.data.tests, EvaluationConfig(seeds=(10,), limit=1), config.data.tokens, tmp_path / "scores")
    assert precisions == ["no"]


def test_the_process_group_is_unchanged() -> None:
    make_accelerator("bf16")
    before = dict(PartialState._shared_state)
    accelerator = make_accelerator("fp32")
    after = PartialState._shared_state
    assert after.keys() == before.keys() and after["device"] == before["device"] == torch.device("cpu")
    assert accelerator.num_processes == before["num_processes"]
