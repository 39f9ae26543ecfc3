"""No disk space at any call of a write: existing files stay, no file is partly written, and the message names path and size."""

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from redistill.errors import OutputError
from redistill.models.initialise import fresh_model
from redistill.models.lora import save_student
from redistill.storage import files, folders
from redistill.training import checkpoint
from tests.faults.faulty_disk import FaultyDisk, refuse
from tests.worlds import GPT2, gpt2_tokenizer

PIECE = 512
TENSORS = {
    group: {f"layer.{i}": torch.from_numpy(np.random.default_rng(i).normal(size=(16, 16))).float() for i in range(3)}
    for group in ("model", "optimizer")
}
STATE = {"training": {"step": 4}, "policy": {"buffer": list(range(200))}}

errors = pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO], ids=lambda number: errno.errorcode[number])


def save(folder: Path, step: int) -> Path:
    return checkpoint.save(folder, step, tensors=TENSORS, state=STATE, keep=1)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[files.Disk], FaultyDisk]:
    """Puts a disk in the place of the real one."""

    def put(disk: FaultyDisk) -> FaultyDisk:
        monkeypatch.setattr(files, "disk", disk)
        return disk

    return put


def count(work: Callable[[], object], use: Callable[[files.Disk], FaultyDisk]) -> int:
    disk = use(FaultyDisk(piece=PIECE))
    work()
    use(FaultyDisk())
    return len(disk.calls)


# --- saves --------------------------------------------------------------------------------------------------------------


@errors
@pytest.mark.parametrize("lasting", [False, True])
def test_a_save_that_fails_at_any_call_leaves_the_checkpoint_before_it(
    tmp_path: Path, use: Callable[[files.Disk], FaultyDisk], number: int, lasting: bool
) -> None:
    save(tmp_path / "counted", 3)
    total = count(lambda: save(tmp_path / "counted", 4), use)
    assert total > 30
    size = checkpoint.num_bytes(TENSORS, STATE)
    for call in range(1, total + 1):
        folder = tmp_path / f"{call}" / "checkpoints"
        target, before = folder / "step-4", contents(save(folder, 3))
        disk = use(FaultyDisk(call, refuse(number), lasting=lasting, piece=PIECE))
        with pytest.raises(OutputError) as caught:
            save(folder, 4)
        use(FaultyDisk())

        failed_at = disk.calls[call - 1]
        found = checkpoint.load(folder)
        assert found is not None and found.skipped == ()
        if not target.exists():
            assert found.step == 3 and contents(folder / "step-3") == before, failed_at
            assert str(caught.value) == (
                f"{target}: {size:,} bytes could not be written ({os.strerror(number)}); free space or choose another folder"
            )
        assert isinstance(caught.value, files.DiskFullError) == (number != errno.EIO)
        assert caught.value.exit_code == (2 if number == errno.EIO else 75)
        save(folder, 5)  # after the restart there is space again
        assert [path.name for path in folder.iterdir()] == ["step-5"], failed_at


# --- everything else ----------------------------------------------------------------------------------------------------

WRITES: dict[str, Callable[[Path], object]] = {
    "lines of a log": lambda path: files.append_lines(path, [{"step": 2}, {"step": 3, "text": "x" * 2000}]),
    "a line of a new log": lambda path: files.append_line(path.with_name("new.jsonl"), {"step": 1}),
    "a report": lambda path: files.write_text(path, "x" * 3000),
    "scores": lambda path: files.write_json(path, {"rouge_l": [1.0] * 300}),
    "answers anew": lambda path: files.rewrite_lines(path, [{"id": i} for i in range(200)]),
    "a file in a new folder": lambda path: files.write_text(path.with_name("deep") / "er" / "a.txt", "x"),
    "the removal of a folder": lambda path: folders.remove_folder(path.with_name("old")),
}


@errors
@pytest.mark.parametrize("write", WRITES.values(), ids=list(WRITES))
def test_a_write_that_fails_at_any_call_is_an_output_error_and_not_half_done(
    tmp_path: Path, use: Callable[[files.Disk], FaultyDisk], write: Callable[[Path], object], number: int
) -> None:
    def fresh(name: str) -> Path:
        (tmp_path / name / "old").mkdir(parents=True)
        (tmp_path / name / "old" / "a.txt").write_text("old")
        (tmp_path / name / "log.jsonl").write_text('{"step": 1}\n')
        return tmp_path / name / "log.jsonl"

    done = fresh("done")
    total = count(lambda: write(done), use)
    whole, none = contents(done.parent), contents(fresh("none").parent)
    for call in range(1, total + 1):
        path = fresh(str(call))
        disk = use(FaultyDisk(call, refuse(number), piece=PIECE))
        with pytest.raises(OutputError, match=os.strerror(number)):
            write(path)
        use(FaultyDisk())
        found = {name: data for name, data in contents(path.parent).items() if data}
        assert found in (none, whole), (disk.calls[call - 1], found)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system refuses to write more than `size` bytes to any file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("width", "limit"), [(64, 100_000), (4, 16_000)], ids=["weights", "tokenizer"])
def test_what_libraries_write_is_refused_in_our_words(tmp_path: Path, width: int, limit: int) -> None:
    """Weights and tokenizer are written by code in Rust, each with errors of its own kind; here the system itself refuses."""
    tokenizer = gpt2_tokenizer()
    model = fresh_model({**GPT2, "n_embd": width, "vocab_size": len(tokenizer), "n_positions": 16, "n_layer": 1}, 0)

    def export() -> None:
        with folders.new_folder(tmp_path / "model") as folder:
            save_student(model, tokenizer, folder)

    with files_of_at_most(limit), pytest.raises(OutputError, match=r"model: could not be written \(File too large\)"):
        export()
    assert list(tmp_path.iterdir()) == []
    export()
    too_large = {path.name for path in (tmp_path / "model").iterdir() if path.stat().st_size > limit}
    assert too_large == {"model.safetensors" if width == 64 else "tokenizer.json"}
