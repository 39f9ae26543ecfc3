"""One rank of two with other inputs: both end with exit code 2, and one line names the rank and the difference."""

import os
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml

from redistill.cli.main import main
from redistill.config.run import encode_run
from redistill.runs import identity
from redistill.runs.record import versions
from redistill.training import checkpoint
from tests.faults.counts import trials
from tests.faults.test_identity import FILES, train_until
from tests.faults.together import together
from tests.worlds import rows, tiny_run, write_rows

pytestmark = pytest.mark.distributed
TEMPLATE = "{% for message in messages %}{{ message['content'] | trim }}{% endfor %}"


def write_training_rows(change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> Callable[[Path], None]:
    return lambda folder: write_rows(folder / "train.jsonl", change(rows(24))) and None


def write_other_validation_rows(folder: Path) -> None:
    write_rows(folder / "validation.jsonl", rows(4, 48))


def replace(model: str, kind: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        name, edit = FILES[kind]
        content = bytearray((folder / model / name).read_bytes())
        edit(content)
        (folder / model / name).write_bytes(content)

    return change


# What differs on rank 1: a change of its folder, or a package of which it has another version; and the name in the error.
TRIALS: dict[str, tuple[Callable[[Path], None] | str, str]] = {
    "row order": (write_training_rows(lambda made: [made[1], made[0], *made[2:]]), "training data"),
    "teacher": (replace("teacher", "weights"), "teacher weights"),
    "transformers": ("transformers", "package versions (transformers 0.0.1 and {version})"),
    "fewer rows": (write_training_rows(lambda made: made[:-1]), "training data"),
    "a row": (write_training_rows(lambda made: [*made[:-1], {**made[-1], "output": "The owl is awake."}]), "training data"),
    "validation rows": (write_other_validation_rows, "validation data"),
    "start": (replace("student", "weights"), "student weights"),
    "tokenizer": (replace("student", "tokenizer"), "student tokenizer, training data, validation data"),
    "chat template": (replace("teacher", "chat template"), "teacher chat template"),
    "redistill": ("redistill", "package versions (redistill 0.0.1 and {version})"),
}


def train(folder: Path, package: str | None) -> None:
    """Train as one of two processes, each with files of its own under the same relative paths, as on two machines."""
    rank = int(os.environ["RANK"])
    os.chdir(folder / f"rank-{rank}")
    if rank == 1 and package is not None:
        identity.versions = lambda: {**versions(), package: "0.0.1"}
    with (folder / f"{rank}.log").open("w") as log, redirect_stdout(log), redirect_stderr(log):
        sys.exit(main(["train", "recipe.yaml"]))


def make_ranks(folder: Path, change: Callable[[Path], None] | None, out: str = "../run") -> None:
    """The files of both ranks, whose runs are in `out`; the files of rank 1 are changed."""
    here = Path.cwd()
    one, two = folder / "rank-0", folder / "rank-1"
    one.mkdir()
    os.chdir(one)
    try:
        config = tiny_run(Path(), "kd", out=out, training={"updates": 2, "batch_size": 4, "save_every": 1})
        Path("recipe.yaml").write_text(yaml.safe_dump(encode_run(config)), encoding="utf-8")
    finally:
        os.chdir(here)
    for model in ("teacher", "student"):
        (one / model / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    shutil.copytree(one, two)
    if change is not None:
        change(two)


@pytest.mark.parametrize("trial", list(TRIALS)[: trials(3, 10)])
def test_a_rank_with_other_inputs_is_named_and_both_end_with_2(tmp_path: Path, trial: str) -> None:
    changed, what = TRIALS[trial]
    package = changed if isinstance(changed, str) else None
    make_ranks(tmp_path, None if isinstance(changed, str) else changed)
    assert together(2, train, tmp_path, package) == [2, 2]
    logs = [(tmp_path / f"{rank}.log").read_text(encoding="utf-8") for rank in (0, 1)]
    what = what.format(version=versions().get(package or ""))
    error = f"redistill: rank 1 has different {what} than rank 0; start all ranks with the same recipe, files and packages"
    assert [line for log in logs for line in log.splitlines() if line.startswith("redistill:")] == [error]
    assert not any("Traceback" in log for log in logs)
    assert not (tmp_path / "run").exists(), "a folder of a run that has not begun is removed"


def test_a_rank_without_the_checkpoints_of_the_others_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would start from scratch while they resume, as on a machine that does not share the disk of the others."""
    make_ranks(tmp_path, None, out="run")
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path / "rank-0")
        train_until(Path("recipe.yaml"), 1, Path("run"))
    assert together(2, train, tmp_path, None) == [2, 2]
    last = (tmp_path / "0.log").read_text(encoding="utf-8").splitlines()[-1]
    assert last.startswith("redistill: rank 1 has different checkpoints than rank 0; ")
    assert checkpoint.steps(tmp_path / "rank-0" / "run" / "checkpoints") == [1]


def test_there_are_10_trials() -> None:
    assert len(TRIALS) == 10


def test_ranks_with_copies_of_the_same_files_are_accepted(tmp_path: Path) -> None:
    make_ranks(tmp_path, None)
    assert together(2, train, tmp_path, None) == [0, 0]
    assert (tmp_path / "run" / "model" / "config.json").exists()
