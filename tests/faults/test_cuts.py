"""However an update is cut - into micro-batches, over processes - the same losses come out, update after update.

The batch of 8 is read as 8 at once, as 4 times 2 and as 8 times 1, by one process, two and four.  21 rows are no multiple of
8, so epochs end within batches, and no two processes have equally many tokens to learn from.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import yaml

from redistill.config.methods import METHODS
from redistill.config.run import Run, encode_run
from redistill.evaluation.folder import RESPONSES
from redistill.losses import divergences
from redistill.runs.run import train_student
from redistill.storage import files
from redistill.training import loop as training
from redistill.training.objective import Counts, Objective
from tests.faults.counts import WHOLE, trials
from tests.faults.together import evaluate, together, train
from tests.worlds import GPT2, rows, tiny_run, write_rows

# Wider weights than a fresh model's, so that texts and teacher differ; no dropout, whose masks belong to a cut.
STILL = {**GPT2, "initializer_range": 0.15, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
UPDATES, BATCH = trials(8, 50), 8
SECTIONS: dict[str, dict[str, Any]] = {  # where a method's defaults would show little in a few updates
    "minillm": {"policy": {"kind": "rollouts", "source": "teacher_mixed", "num_rollouts": 16, "inner_epochs": 2}},
    "distillm": {"policy": {"kind": "adaptive", "threshold": 0.7, "capacity": 8}},
}
DIVERGENCES = {member.__name__: member for member in get_args(divergences.Divergence)}
QUICK = ("AlphaBeta", "mgsr")
# The gradients of total variation and of the acceptance, sum_v min(p, q), jump where a class is as likely for both, and there
# rounding chooses the side.
LIMITS = dict.fromkeys(("TotalVariation", "NegativeLogAcceptance", "HybridAcceptance"), 1e-4)
NAMES = (*METHODS, *DIVERGENCES) if WHOLE else QUICK

every_name = pytest.mark.parametrize("name", NAMES)
Losses = Callable[[str], np.ndarray]


def uneven(made: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With answers of one word to five, so that every cut has other numbers of tokens in its pieces."""
    return [{**row, "output": " ".join(row["output"].split()[: 1 + i % 5])} for i, row in enumerate(made)]


def run(folder: Path, name: str, out: str, micro_batch: int) -> Run:
    """A run of a method, or of a divergence on gold answers."""
    corpus = folder / "corpus.txt"
    corpus.write_text("\n\n".join(f"The {row['output']} {row['instruction']}" * 9 for row in rows(24)), encoding="utf-8")
    data = {
        "train": [write_rows(folder / "train-21.jsonl", uneven(rows(21)))],
        "tests": {"toy": write_rows(folder / "test-7.jsonl", rows(7, 28))},
        "tokens": {"prompt_tokens": 80, "response_tokens": 12},
        "validation_rows": 2,
        "corpus": [str(corpus)],
    }
    settings = {"updates": UPDATES, "batch_size": BATCH, "micro_batch_size": micro_batch, "log_every": 1}
    sections = {"data": data, "training": settings, **SECTIONS.get(name, {})}
    config = tiny_run(folder, name if name in METHODS else "kd", config=STILL, out=f"{name}-{out}", **sections)
    if name in DIVERGENCES:
        objective = Objective(sft_weight=0.0, divergence=DIVERGENCES[name].examples()[0])
        config = dataclasses.replace(config, objective=objective)
    return config


def losses_of(config: Run) -> np.ndarray:
    """The loss of each update; an alarm of a guard would be a false one."""
    lines = files.read_lines(config.folder / "metrics.jsonl")
    assert [line for line in lines if line["kind"] == "event"] == []
    found = np.array([line["loss"] for line in lines if line["kind"] == "train"])
    assert found.shape == (UPDATES,)
    return found


def assert_same(found: np.ndarray, expected: np.ndarray, name: str) -> None:
    """No loss is off by more than 1e-6; and all together to neither side, by more than scatter or two units in the last place.

    Total variation is held to its limit alone: two runs that have parted stay apart to one side for a while.
    """
    off = found - expected
    assert np.abs(off).max() <= LIMITS.get(name, 1e-6), np.abs(off).max()
    rounding = 2 * np.finfo(np.float32).eps * np.abs(expected).mean()
    assert name in LIMITS or abs(off.mean()) <= max(rounding, 4 * off.std() / np.sqrt(len(off))), off.mean()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cuts")


@pytest.fixture(scope="module")
def at_once(world: Path) -> Losses:
    """Losses where one process reads each batch at once."""
    known: dict[str, np.ndarray] = {}

    def losses(name: str) -> np.ndarray:
        if name not in known:
            config = run(world, name, "at-once", BATCH)
            train_student(config)
            known[name] = losses_of(config)
        return known[name]

    return losses


@every_name
@pytest.mark.parametrize("micro_batch", [1, 2])
def test_micro_batches_change_no_loss(world: Path, at_once: Losses, micro_batch: int, name: str) -> None:
    config = run(world, name, f"by-{micro_batch}", micro_batch)
    train_student(config)
    assert_same(losses_of(config), at_once(name), name)


@pytest.mark.distributed
@pytest.mark.parametrize("processes", [2, 4] if WHOLE else [4])
def test_processes_change_no_loss(world: Path, at_once: Losses, processes: int) -> None:
    names = NAMES if WHOLE else ("mgsr",)
    configs = {name: run(world, name, f"on-{processes}", 1) for name in names}
    recipes = [_recipe(config) for config in configs.values()]
    assert together(processes, train, recipes) == [0] * processes, [path.with_suffix(".log").read_text() for path in recipes]
    for name, config in configs.items():
        assert files.read_json(config.folder / "run.json")["processes"] == processes
        assert_same(losses_of(config), at_once(name), name)


def test_a_mean_over_each_micro_batch_would_be_noticed(world: Path, at_once: Losses, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the tests above would show nothing: the old mistake of dividing each micro-batch by its own tokens."""
    monkeypatch.setattr(training, "global_counts", lambda batches: Counts.total([Counts.of(batches[:1])] * len(batches)))
    config = run(world, QUICK[0], "mean-of-means", 2)
    train_student(config)
    assert np.abs(losses_of(config) - at_once(QUICK[0])).max() > 1e-4


@pytest.mark.distributed
def test_evaluations_on_one_process_two_and_four_are_the_same_to_the_last_digit(world: Path) -> None:
    """7 prompts, two seeds: 7, or 3 and 4, or 1, 2, 2 and 2 for each process; some have a batch less than others."""
    recipe = _recipe(run(world, "kd", "evaluation", BATCH))
    found = []
    for processes in (1, 2, 4) if WHOLE else (1, 4):
        out = world / f"scores-{processes}"
        assert together(processes, evaluate, recipe, out) == [0] * processes
        scores = files.read_json(out / "scores.json")
        answers = {path.name: files.read_lines(path) for path in (out / RESPONSES).iterdir()}
        assert all(len({line["id"] for line in lines}) == len(lines) == 7 for lines in answers.values())
        found.append((scores["datasets"], answers))
    assert found[0][0]["toy"]["seeds"].keys() == {"10", "20"}
    assert all(other == found[0] for other in found)


def _recipe(config: Run) -> Path:
    path = config.folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(encode_run(config)), encoding="utf-8")
    return path
