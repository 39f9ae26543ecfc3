"""A run resumed at any step is bitwise equal at its end, for every loss, policy and precision.

Every checkpoint of a run stands.  From each, one update is made by a run that begins anew, and all that it saves and logs is
held against what the straight run has there.  If that is equal at every step, then by induction so is the end of a run that
stops at any of them; some go on to their end besides, to see that nothing which is not saved matters later.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import astuple, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from redistill.config.run import encode_run, load_config
from redistill.policies import Adaptive, Buffered, Policy, PolicyConfig, Revised, Rollouts, TeacherMixed
from redistill.runs import run as runs
from redistill.runs.run import train_student
from redistill.testing.fixture import make_fixture
from redistill.testing.policies import plain_state, saved_and_loaded
from redistill.training import checkpoint
from tests.faults.counts import WHOLE, trials
from tests.faults.part_of_a_run import train_until
from tests.faults.remains import remains
from tests.worlds import GPT2, tiny_run

UPDATES = trials(12, 24)
WITH_DROPOUT = {**GPT2, "initializer_range": 0.15, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
SHORT = {"tokens": {"prompt_tokens": 80, "response_tokens": 6}, "validation_rows": 2}
LOGS = ("metrics.jsonl", "revisions.jsonl", "revision-positions.jsonl")

METHODS: dict[str, dict[str, Any]] = {
    "cross entropy": {"method": "sft", "teacher": None},
    "forward KL": {"method": "kd"},
    "reverse KL": {"method": "kd", "objective": {"sft_weight": 0.0, "divergence": {"kind": "reverse_kl"}}},
    "Jensen-Shannon": {"method": "gkd"},
    "a replay buffer": {"method": "imitkd", "policy": {"kind": "buffered", "capacity": 9}},
    "an adaptive buffer": {"method": "distillm", "policy": {"kind": "adaptive", "threshold": 0.8, "capacity": 6}},
    "roll-outs": {"method": "minillm", "policy": {"kind": "rollouts", "num_rollouts": 8, "inner_epochs": 2}},
    "TAID": {"method": "taid", "objective": {"sft_weight": 0.0, "divergence": {"kind": "taid", "adaptation": 0.5}}},
    "MGSR": {"method": "mgsr"},
    "MGSR with adapters": {"method": "mgsr", "student": {"lora": {"rank": 2, "alpha": 4, "dropout": 0.1}}},
}
Variant = tuple[str, int, str]  # of METHODS, micro-batches an update, precision
QUICK: list[Variant] = [("an adaptive buffer", 1, "fp32"), ("MGSR with adapters", 4, "bf16")]
VARIANTS: list[Variant] = list(product(METHODS, (1, 4), ("fp32", "bf16"))) if WHOLE else QUICK


class Straight:
    """A run that nothing has interrupted, with all of its checkpoints."""

    def __init__(self, parent: Path, variant: Variant) -> None:
        method, accumulation, precision = variant
        settings = {"updates": UPDATES, "batch_size": 4, "micro_batch_size": 4 // accumulation, "precision": precision}
        often = {"evaluate_every": 6, "save_every": 1, "keep": UPDATES, "log_every": 1}
        sections = {"data": SHORT, "training": settings | often, **METHODS[method]}
        self.config = tiny_run(parent, config=WITH_DROPOUT, out="straight", **sections)
        self.folder = self.config.folder
        train_student(self.config)

    def stopped_behind(self, step: int) -> tuple[Path, Path]:
        """A folder as this run's was when it had gone on a while after its checkpoint `step`; and its recipe."""
        folder = self.folder.with_name("resumed")
        shutil.rmtree(folder, ignore_errors=True)
        saved = self.folder / "checkpoints"
        best = checkpoint.load_step(saved, step).state["training"]["best_step"]
        for number in {step, best} - {None}:
            shutil.copytree(saved / f"step-{number}", folder / "checkpoints" / f"step-{number}")
        shutil.copy(saved / checkpoint.IDENTITY, folder / "checkpoints")
        for path in self.folder.iterdir():
            if path.suffix in {".json", ".jsonl"}:
                shutil.copy(path, folder)
        recipe = folder.with_suffix(".yaml")
        recipe.write_text(yaml.safe_dump({**encode_run(self.config), "out": str(folder)}), encoding="utf-8")
        return folder, recipe

    def held_against(self, folder: Path, step: int) -> list[str]:
        """What is not the same in another run's folder that has come to the checkpoint `step`: parts of it, and logs."""
        saved = [remains(run / "checkpoints" / f"step-{step}") for run in (self.folder, folder)]
        logged = [{name: lines for name, lines in remains(run).items() if name in LOGS} for run in (self.folder, folder)]
        logged[0] = {name: [line for line in lines if line["step"] <= step] for name, lines in logged[0].items()}
        pairs = [{**part, **part.pop("state.json"), **log} for part, log in zip(saved, logged, strict=True)]
        return sorted(name for name in pairs[0].keys() | pairs[1].keys() if pairs[0].get(name) != pairs[1].get(name))


@pytest.fixture(scope="module", params=VARIANTS, ids=lambda variant: ", ".join(map(str, variant)))
def straight(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Straight]:
    folder = tmp_path_factory.mktemp("matrix")
    yield Straight(folder, request.param)
    shutil.rmtree(folder)  # a checkpoint for each update


def test_one_update_from_each_checkpoint_is_the_one_that_the_straight_run_made(straight: Straight) -> None:
    steps = range(1, UPDATES) if WHOLE else (5, UPDATES - 1)  # 6 is validated, and so is the last
    for step in steps:
        folder, recipe = straight.stopped_behind(step)
        train_until(recipe, step + 1, world=1)
        assert straight.held_against(folder, step + 1) == [], step


def test_a_run_resumed_long_before_its_end_leaves_the_same_files(straight: Straight) -> None:
    for step in (3, 11) if WHOLE else (7,):
        folder, recipe = straight.stopped_behind(step)
        train_student(load_config(recipe))
        assert straight.held_against(folder, UPDATES) == [], step
        assert remains(folder / "model") == remains(straight.folder / "model"), step


def test_whatever_is_not_put_back_is_noticed(straight: Straight, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the tests above would show nothing about it.  An older state of each part is put back instead of its own."""
    old, new = (checkpoint.load_step(straight.folder / "checkpoints", step) for step in (3, 7))
    restore, changing = runs.restore_checkpoint, {name for name in new.state if new.state[name] != old.state[name]}
    assert {"guard", "early_stopping"} <= changing
    # Where it stands; learning rates, which each update sets anew; and sizes of logs, which are not put back here.
    changing -= {"training", "optimizer", "log_bytes"}
    groups = [f"{group} tensors" for group in new.tensors if group in old.tensors]
    assert {"optimizer tensors", "model tensors"} <= set(groups)
    for name in (*groups, *sorted(changing)):

        def stale(parts: Any, found: Any, name: str = name) -> Any:
            group = name.removesuffix(" tensors")
            if group == name:
                return restore(parts, replace(found, state={**found.state, name: old.state[name]}))
            return restore(parts, replace(found, tensors={**found.tensors, group: old.tensors[group]}))

        folder, recipe = straight.stopped_behind(7)
        monkeypatch.setattr(runs, "restore_checkpoint", stale)
        train_until(recipe, 8, world=1)
        assert straight.held_against(folder, 8) != [], name


BUFFERS = (
    Buffered(capacity=12),
    Adaptive(threshold=0.6, capacity=8),
    Adaptive(source=Revised(), capacity=6),
    Rollouts(source=TeacherMixed(), num_rollouts=8, inner_epochs=3),
)
STEPS, PLACES = 24, range(2, 22, 2)


@pytest.mark.parametrize("node", BUFFERS, ids=repr)
def test_what_a_policy_remembers_is_put_back_in_its_order_with_all_that_is_pending(node: PolicyConfig) -> None:
    """At ten steps; a state is held against another by its hash, and what is drawn from it by the sequences."""

    def begun() -> Policy:
        return make_fixture().policy(node, updates=STEPS)

    def drawn(policy: Policy, step: int) -> list[tuple[Any, ...]]:
        draw = policy.draw(step)
        if step % 3 == 2:
            policy.observe(1.0 + step)
        return [astuple(sequence) for sequence in draw.with_role("distillation")]

    def digest(policy: Policy) -> str:
        return hashlib.sha256(json.dumps(plain_state(policy.state_dict())).encode()).hexdigest()

    straight, states, hashes, draws = begun(), [], [], []
    for step in range(STEPS):
        states.append(saved_and_loaded(straight.state_dict()))
        hashes.append(digest(straight))
        draws.append(drawn(straight, step))
    assert len(set(hashes)) > 4, "a state that never changes shows nothing"
    for step in PLACES:
        resumed = begun()
        resumed.load_state_dict(states[step])
        assert digest(resumed) == hashes[step], step
        assert [drawn(resumed, step), drawn(resumed, step + 1)] == draws[step : step + 2], step
        assert digest(resumed) == hashes[step + 2], step
