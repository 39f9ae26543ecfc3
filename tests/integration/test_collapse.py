"""DAC-KL whose network learns collapses within fifteen updates; forward KL to a sharpened teacher does not."""

from pathlib import Path

from redistill.records import Json
from redistill.runs.run import train_student
from redistill.storage import files
from tests.worlds import LLAMA, tiny_run, write_model

UPDATES, WINDOW = 15, 5


def lines_of(folder: Path, method: str, **optimiser: float) -> list[dict[str, Json]]:
    """The log of a run on the student's own text; the distributions of the random teacher are far from uniform."""
    write_model(folder / "teacher", LLAMA, 1, initializer_range=0.5)
    run = tiny_run(
        folder,
        method,
        policy="student_generated",
        optimiser={"learning_rate": 3e-3, **optimiser},
        training={"updates": UPDATES, "batch_size": 4, "log_every": 1, "evaluate_every": UPDATES},
        guards={"collapse_window": WINDOW},
    )
    train_student(run)
    return list(files.read_lines(run.folder / "metrics.jsonl"))


def events(lines: list[dict[str, Json]]) -> set[Json]:
    return {line["sign"] for line in lines if line["kind"] == "event" and line["event"] == "collapse"}


def validated_kl(lines: list[dict[str, Json]]) -> list[Json]:
    return [line["kl"] for line in lines if line["kind"] == "validation"]


def test_a_learned_interval_collapses_and_the_event_is_logged(tmp_path: Path) -> None:
    lines = lines_of(tmp_path, "mgsr", clip_network_learning_rate=0.05)
    recovered = [line["recovered"] for line in lines if line["kind"] == "train"]
    assert recovered[0] > 0.5 and max(recovered[-WINDOW:]) < 0.1
    assert "recovered" in events(lines)


def test_a_sharpened_teacher_does_not_collapse(tmp_path: Path) -> None:
    lines = lines_of(tmp_path, "mgsr-robust")
    assert not events(lines) & {"recovered", "kept_mass"}
    before, after = validated_kl(lines)
    assert after < before
