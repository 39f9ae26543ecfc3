"""metrics.jsonl of a resumed run equals that of an uninterrupted one."""

from pathlib import Path

from redistill.storage import files
from redistill.training.metrics import MetricsLog


def test_an_interrupted_and_resumed_log_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    def write(log: MetricsLog, first: int, last: int) -> None:
        for step in range(first, last + 1):
            log.write({"kind": "train", "step": step, "loss": 1 / step})
            if step % 2 == 0:
                log.write({"kind": "validation", "step": step, "rouge_l": 20.0 + step})

    straight, broken = MetricsLog(tmp_path / "a.jsonl"), MetricsLog(tmp_path / "b.jsonl")
    write(straight, 1, 6)
    write(broken, 1, 5)
    with broken.path.open("ab") as file:
        file.write(b'{"kind": "train", "st')  # killed in the middle of a write
    broken.truncate_after(4)
    assert [line["step"] for line in files.read_lines(broken.path)] == [1, 2, 2, 3, 4, 4]
    write(broken, 5, 6)
    assert broken.path.read_bytes() == straight.path.read_bytes()


def test_truncating_a_missing_log_does_nothing(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.truncate_after(0)
    assert not log.path.exists()
