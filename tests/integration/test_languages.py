"""Training on Chinese rows: the checkpoint with the best answers is chosen, and rows that cannot be scored are reported."""

from pathlib import Path

import pytest

from redistill.runs.run import train_student
from redistill.storage import files
from redistill.training import checkpoint
from tests.worlds import tiny_run, write_rows


def test_the_checkpoint_with_the_best_chinese_answers_is_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The student learns an answer that is similar to the references, so that their cross entropy rises at the same time."""
    train = [{"instruction": f"Q{number}", "output": "我们爱北京"} for number in range(4)]
    held_out = [{"instruction": f"Q{number}", "output": answer} for number, answer in ((1, "北京我们爱"), (2, "👍"))]
    config = tiny_run(
        tmp_path,
        "sft",
        data={
            "train": [write_rows(tmp_path / "chinese.jsonl", train)],
            "validation": write_rows(tmp_path / "held_out.jsonl", held_out),
            "tests": {},
        },
        optimiser={"learning_rate": 1e-2, "warmup_updates": 0},
        training={"updates": 70, "evaluate_every": 10, "keep": 9},
    )
    train_student(config)
    lines = [line for line in files.read_lines(config.folder / "metrics.jsonl") if line["kind"] == "validation"]
    found = checkpoint.load(config.folder / "checkpoints")
    assert found is not None
    chosen = next(line for line in lines if line["step"] == found.state["training"]["best_step"])
    assert chosen["rouge_l"] == max(line["rouge_l"] for line in lines) > 0
    assert chosen["cross_entropy"] > min(line["cross_entropy"] for line in lines), "chosen by the answers"
    note = "note: validation: ROUGE-L cannot score 1 of 2 rows (the first is held_out:2)"
    assert note in "".join(capsys.readouterr())
