"""The check of disk space: the estimate is within 10 %, and a run that does not fit is rejected before it starts."""

import io
import itertools
from pathlib import Path
from typing import Any

import pytest

from redistill.config.run import Run
from redistill.evaluation.evaluator import Evaluator
from redistill.runs import record
from redistill.runs.disk_space import Space, check_space
from redistill.runs.run import train_student
from redistill.storage import files
from redistill.storage.files import DiskFullError
from tests.worlds import GPT2, tiny_run

WIDE = {**GPT2, "n_embd": 128, "n_layer": 2}  # weights beside which names and tokenizer files are small
CASES: dict[str, dict[str, Any]] = {
    "one is kept": {"training": {"updates": 4, "save_every": 1}},
    "two are kept, and the best": {"training": {"updates": 5, "save_every": 1, "evaluate_every": 1, "keep": 2}},
    "one is written at all": {"training": {"updates": 1}},
    "with a clip network": {"method": "mgsr", "training": {"updates": 2, "save_every": 1}},
    "adapters, merged": {"student": {"lora": {"rank": 8}}, "training": {"updates": 2, "save_every": 1}},
    "adapters alone": {"student": {"lora": {"rank": 8, "export": "adapter"}}, "training": {"updates": 2, "save_every": 1}},
}


class Watching(files.Disk):
    """Records the largest total size of the checkpoints and the student of a run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.peak = folder, 0

    def sync(self, descriptor: int) -> None:
        places = (self.folder / "checkpoints", *self.folder.glob(f"{files.TEMPORARY}model-*"))
        written = [path for place in places for path in place.rglob("*") if path.is_file()]
        self.peak = max(self.peak, sum(path.stat().st_size for path in written))
        super().sync(descriptor)


class Full(files.Disk):
    """A disk with a given free size, on which no file may be opened for writing after the size was read."""

    def __init__(self, free: int) -> None:
        self.free = free

    def free_bytes(self, folder: Path) -> int:
        return self.free

    def open(self, path: Path, mode: str) -> io.FileIO:
        raise AssertionError(f"{path} is written")


def case(folder: Path, name: str) -> Run:
    sections = {"method": "sft", **CASES[name]}
    settings = {"batch_size": 2, **sections["training"]}
    return tiny_run(folder, config=WIDE, **{**sections, "training": settings})


@pytest.mark.parametrize("name", list(CASES))
def test_the_estimate_is_within_10_percent_of_the_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    config, estimates = case(tmp_path, name), list[Space]()
    disk = Watching(config.folder)
    monkeypatch.setattr(files, "disk", disk)
    monkeypatch.setattr(record, "check_space", lambda folder, space: estimates.append(space))
    # Decreasing scores, so that the first checkpoint stays the best one and is kept with the newest.
    entropies = itertools.count(1.0)
    scores = {"rouge_l": 1.0, "exact_match": 0.0}
    monkeypatch.setattr(Evaluator, "validate", lambda *_, **__: {**scores, "cross_entropy": next(entropies)})
    train_student(config)
    assert estimates[0].peak_bytes == pytest.approx(disk.peak, rel=0.1)
    newest = config.folder / "checkpoints" / f"step-{config.training.updates}"
    assert estimates[0].checkpoint_bytes == pytest.approx(sum(path.stat().st_size for path in newest.iterdir()), rel=0.1)


def test_too_little_disk_space_is_an_error_before_a_file_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = case(tmp_path, "two are kept, and the best")
    monkeypatch.setattr(files, "disk", Full(1_000_000))
    with pytest.raises(DiskFullError) as caught:
        train_student(config)
    message = str(caught.value)
    assert message.startswith(f"{config.folder}: 1.0 MB are free and ") and "(4 checkpoints of " in message
    assert "lower training.keep" in message and caught.value.exit_code == 75
    assert not config.folder.exists()


def test_checkpoints_of_an_interrupted_run_count_as_free_and_its_student_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = Space(checkpoint_bytes=1000, while_saving=3, afterwards=2, student_bytes=500)
    assert space.peak_bytes == 3000
    (tmp_path / "checkpoints" / "step-1").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-1" / "model.safetensors").write_bytes(bytes(1000))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(bytes(500))  # removed only after the new one is written
    monkeypatch.setattr(files, "disk", Full(2000))
    check_space(tmp_path, space)
    monkeypatch.setattr(files, "disk", Full(1999))
    with pytest.raises(DiskFullError):
        check_space(tmp_path, space)


def test_the_peak_includes_a_large_student_with_small_adapters() -> None:
    assert Space(checkpoint_bytes=10, while_saving=2, afterwards=1, student_bytes=500).peak_bytes == 510
