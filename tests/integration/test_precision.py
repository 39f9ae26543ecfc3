"""Each run has its own precision, whatever ran before it in the same process."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from accelerate import Accelerator, PartialState
from torch.utils._python_dispatch import TorchDispatchMode

from redistill.evaluation.scores import EvaluationConfig
from redistill.models.families import body
from redistill.models.initialise import cast_weights, fresh_model
from redistill.models.load import ModelConfig
from redistill.models.lora import LoraConfig, add_lora
from redistill.runs.opened import make_accelerator, notes
from redistill.runs.run import evaluate_model, train_student
from tests.worlds import LLAMA, tiny_run


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


@pytest.mark.parametrize(("precision", "expected"), [("tf32", "tf32"), ("fp32", "ieee"), ("bf16", "ieee")])
def test_each_run_sets_the_precision_of_products_on_a_gpu(precision: Any, expected: str) -> None:
    make_accelerator("tf32")
    assert make_accelerator(precision).mixed_precision == ("bf16" if precision == "bf16" else "no")
    found = torch.backends.cuda.matmul.fp32_precision
    make_accelerator("fp32")
    assert found == expected


def test_a_slow_precision_is_reported_on_a_gpu_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tiny_run(tmp_path, student={"lora": {"rank": 2}}, training={"precision": "bf16"})
    good = tiny_run(
        tmp_path,
        teacher={"dtype": "bfloat16"},
        student={"lora": {"rank": 2}, "dtype": "bfloat16"},
        training={"precision": "bf16"},
    )
    plain = tiny_run(tmp_path)
    usual = [len(list(notes(run))) for run in (slow, good, plain)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [len(list(notes(run))) for run in (slow, good, plain)] == [usual[0] + 2, usual[1], usual[2] + 1]
    text = " ".join(notes(slow))
    assert "teacher.dtype is float32" in text and "student.dtype=bfloat16" in text


def test_a_bf16_base_of_adapters_is_not_converted_for_each_token() -> None:
    """Autocast converts the weights of a float32 base at every decoded token."""

    class Conversions(TorchDispatchMode):
        sizes: ClassVar[list[int]] = []

        def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if operation is torch.ops.aten._to_copy.default and args[0].dim() == 2:
                self.sizes.append(args[0].numel())
            return operation(*args, **(kwargs or {}))

    found = []
    for dtype in (torch.float32, torch.bfloat16):
        model = add_lora(fresh_model({**LLAMA, "vocab_size": 40}, 1), LoraConfig(rank=1, dropout=0.0), 1).eval()
        cast_weights(model, dtype)
        Conversions.sizes.clear()
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), Conversions():
            body(model)(torch.tensor([[3]]), torch.tensor([[1]]))
        found.append(sum(size >= 32 * 32 for size in Conversions.sizes))  # the weights of the base; adapters are smaller
    assert found[0] >= 7 * 3 and found[1] == 0
