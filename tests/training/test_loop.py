"""The loop: how a draw is split, when training stops, and what happens when an update is skipped."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from redistill.contracts import Draw, TokenSequence, items_of
from redistill.data.collate import empty_batch
from redistill.data.grouping import ReadCost
from redistill.errors import ConfigError, TrainingError
from redistill.evaluation.evaluator import Evaluator
from redistill.generation.local import LocalEngine
from redistill.policies import Policy
from redistill.runs.build import build_evaluator, build_parts
from redistill.runs.opened import open_run
from redistill.runs.run import train_student
from redistill.storage import files, folders
from redistill.training import checkpoint
from redistill.training import loop as training
from redistill.training.guards import UpdateGuard
from redistill.training.lengths import in_updates
from redistill.training.loop import cut, filled_up
from redistill.training.objective import Counts, Objective, PretrainingConfig
from redistill.training.schedule import TrainingConfig
from tests.worlds import tiny_run

# --- micro-batches ------------------------------------------------------------------------------------------------------


def sequence(sample, origin="dataset", tokens=3):
    supervised = (False,) + (True,) * (tokens - 1)
    return TokenSequence(sample=sample, token_ids=tuple(range(1, tokens + 1)), supervised=supervised, origin=origin)


def parts_of(objective):
    learner = SimpleNamespace(objective=objective, max_tokens=None)
    return SimpleNamespace(learner=learner, pad_id=0, accelerator=SimpleNamespace(device="cpu"))


def cut_in(size, gold, sampled, objective=None):
    items = (*items_of(sampled, "distillation"), *items_of(gold, "sft"))
    return cut(Draw(items=items), size, parts_of(objective or Objective()))


def test_a_draw_is_split_into_micro_batches_within_the_limit_of_each_kind():
    gold, sampled = [sequence(i) for i in range(5)], [sequence(i, "student") for i in range(5)]
    batches = cut_in(2, gold, sampled)
    assert sorted(sample for batch in batches for sample in batch.samples) == sorted([*range(5), *range(5)])
    assert all(batch.num_sampled <= 2 and len(batch.samples) - batch.num_sampled <= 2 for batch in batches)


def test_without_a_size_a_small_draw_is_one_micro_batch():
    (batch,) = cut_in(None, [sequence(i) for i in range(5)], [])
    assert batch.samples == (0, 1, 2, 3, 4)


def test_a_draw_of_only_one_kind_is_split_as_well():
    assert sorted(len(batch.samples) for batch in cut_in(2, [], [sequence(i, "student") for i in range(3)])) == [1, 2]


def test_short_sequences_are_not_padded_to_the_longest_of_the_draw():
    batches = cut_in(None, [sequence(0, tokens=200), sequence(1, tokens=9)], [sequence(2, "student", tokens=200)])
    assert [batch.input_ids_BT.shape for batch in batches] == [(2, 200), (1, 9)]


COSTS = {
    "by length": ReadCost(overhead_tokens=0, max_tokens=1),
    "two by two": ReadCost(overhead_tokens=60, max_tokens=150),
    "at once": ReadCost(overhead_tokens=10**9, max_tokens=10**9),
}


def test_every_split_has_the_same_gradient(tmp_path, monkeypatch):
    """Gold and revised sequences in one forward or in two, sorted or not: the coefficients are those of the global batch."""
    found = {}
    with open_run(tiny_run(tmp_path, "mgsr", training={"batch_size": 6})) as opened:
        parts = build_parts(opened, build_evaluator(opened, opened.models.student))
        draw = parts.learner.objective.select(parts.policy.draw(0))
        for name, cost in COSTS.items():
            monkeypatch.setattr(training, "read_cost", lambda device, cost=cost: cost)
            batches, _, sums = training.gradients(draw, parts, 0)
            gradient = {n: p.grad.clone() for n, p in opened.student.named_parameters() if p.grad is not None}
            found[name] = (len(batches), sums, gradient)
            parts.learner.optimizer.zero_grad(set_to_none=True)
    (most, *_), _, (one, sums, gradient) = found.values()
    assert one == 1 < most
    for _, other_sums, other in found.values():
        assert other_sums == pytest.approx(sums, rel=1e-5) and other.keys() == gradient.keys()
        assert all((other[name] - value).norm() <= 1e-5 * value.norm() + 1e-9 for name, value in gradient.items())


# --- the loop -----------------------------------------------------------------------------------------------------------


def run(folder: Path, optimiser=(), *, guards=(), **settings):
    settings = {"updates": 4, "batch_size": 2, "log_every": 1, **settings}
    return tiny_run(folder, "sft", teacher=None, training=settings, optimiser=dict(optimiser), guards=dict(guards))


@pytest.fixture
def scripted(monkeypatch):
    """Scripted validation scores, one per validation; the one before the first update scores 0.

    Each is a ROUGE-L, or a pair of it and a cross entropy.
    """

    def script(*scores):
        left = [0.0, *scores]

        def validate(*_, **__):
            rouge, entropy = found if isinstance(found := left.pop(0), tuple) else (found, 1.0)
            return {"rouge_l": rouge, "exact_match": 0.0, "cross_entropy": entropy}

        monkeypatch.setattr(Evaluator, "validate", validate)

    return script


def lines(config, kind):
    return [line for line in files.read_lines(config.folder / "metrics.jsonl") if line["kind"] == kind]


def test_the_best_checkpoint_is_kept_and_exported(tmp_path, scripted):
    scripted(5.0, 9.0, 8.0, 2.0)
    config = run(tmp_path, evaluate_every=1, keep=1)
    train_student(config)
    assert checkpoint.steps(config.folder / "checkpoints") == [2, 4]
    last = checkpoint.load_step(config.folder / "checkpoints", 4)
    assert (last.state["training"]["best_step"], last.state["training"]["best_score"]) == (2, 9.0)


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([(5.0, 2.0), (5.0, 1.5), (5.0, 1.8), (4.0, 0.1)], 2),  # the lower cross entropy among equal scores
        ([(5.0, 2.0), (5.0, 1.5), (5.0, 1.5), (4.0, 1.5)], 3),  # then the later step
        ([(5.0, math.nan), (5.0, 1.5), (5.0, math.nan), (4.0, 1.0)], 2),  # any cross entropy before none
    ],
)
def test_at_equal_scores_the_lower_cross_entropy_is_better_then_the_later_step(tmp_path, scripted, scores, best):
    scripted(*scores)
    config = run(tmp_path, evaluate_every=1)
    train_student(config)
    last = checkpoint.load_step(config.folder / "checkpoints", 4)
    assert last.state["training"]["best_step"] == best


def test_notes_have_every_validation_metric_in_its_unit(tmp_path, scripted, capsys):
    scripted(12.345, 12.345)
    train_student(run(tmp_path, updates=1, evaluate_every=1))
    said = capsys.readouterr().err
    assert "step 1: validation ROUGE-L 12.35, exact match 0.0 %, cross entropy 1.000" in said
    assert "best checkpoint: step 1, validation ROUGE-L 12.35" in said


def test_training_stops_when_validation_no_longer_gains(tmp_path, scripted):
    scripted(5.0, 4.0, 3.0)
    config = run(tmp_path, updates=9, evaluate_every=1, patience=2)
    train_student(config)
    assert [line["step"] for line in lines(config, "train")] == [1, 2, 3]
    assert files.read_json(config.folder / "run.json")["status"] == "trained"


def test_a_run_that_stopped_early_is_not_resumed(tmp_path, scripted):
    scripted(5.0, 4.0)
    config = run(tmp_path, updates=9, evaluate_every=1, patience=1)
    train_student(config)
    folders.remove_folder(config.folder / "model")  # as if the machine had failed before the export
    train_student(config)
    assert [line["step"] for line in lines(config, "train")] == [1, 2]


def test_saves_come_between_validations(tmp_path, scripted, monkeypatch):
    scripted(1.0, 2.0)
    saved = []
    save = training.save_checkpoint

    def noted(parts, settings, state):
        saved.append(state.step)
        save(parts, settings, state)

    monkeypatch.setattr(training, "save_checkpoint", noted)
    config = run(tmp_path, updates=7, evaluate_every=4, save_every=3)
    train_student(config)
    assert saved == [3, 4, 6, 7]
    assert [line["step"] for line in lines(config, "validation")] == [0, 4, 7]


def test_an_update_that_is_not_finite_is_skipped(tmp_path, scripted, monkeypatch):
    scripted(1.0)
    averages, seen = training.averages, []

    def poisoned(objective, counts, sums):
        seen.append(counts)
        return averages(objective, counts, sums) | ({"loss": math.nan} if len(seen) == 2 else {})

    monkeypatch.setattr(training, "averages", poisoned)
    config = run(tmp_path, save_every=1, keep=9)
    train_student(config)
    steps = [checkpoint.load_step(config.folder / "checkpoints", step) for step in (1, 2, 3)]
    models = [torch.cat([value.flatten() for value in step.tensors["model"].values()]) for step in steps]
    assert torch.equal(models[0], models[1]) and not torch.equal(models[1], models[2])
    assert [line["loss"] is None for line in lines(config, "train")] == [False, True, False, False]
    guard = steps[2].state["guard"]
    assert (guard["skips_in_a_row"], guard["skips"]) == (0, 1)


def test_too_many_consecutive_skips_end_the_run_with_exit_code_1(tmp_path, monkeypatch):
    averages = training.averages
    monkeypatch.setattr(training, "averages", lambda *a: averages(*a) | {"loss": math.inf})
    with pytest.raises(TrainingError, match=r"not finite; 2 updates in a row were skipped \(guards.max_skips = 1\)") as caught:
        train_student(run(tmp_path, guards={"max_skips": 1}))
    assert caught.value.exit_code == 1


def test_gradients_do_not_accumulate_over_skipped_updates(tmp_path, scripted, monkeypatch):
    """The gradient of a skipped update must not be part of the next one."""
    scripted(1.0)
    norms = []
    clip = training._clip

    def noted(learner, max_norm):
        norms.append(clip(learner, max_norm)["grad_norm"])
        return {"grad_norm": norms[-1]}

    monkeypatch.setattr(training, "_clip", noted)
    monkeypatch.setattr(UpdateGuard, "allows", lambda self, update: False)
    train_student(run(tmp_path, updates=4, batch_size=24))
    assert norms == pytest.approx([norms[0]] * 4, rel=1e-4), "the same batch and the same weights, four times"


def test_a_corpus_has_separate_batches_before_the_task():
    objective = Objective(sft_weight=1.0, pretraining=PretrainingConfig(divergence_share=0.5))
    gold = items_of([sequence(1), sequence(2)], "sft")
    batches = cut(Draw(items=gold, corpus=(sequence(7, "corpus"), sequence(8, "corpus"))), 1, parts_of(objective))
    assert [batch.role for batch in batches] == ["pretraining", "pretraining", "task", "task"]
    assert [batch.samples for batch in batches] == [(7,), (8,), (1,), (2,)]
    assert [batch.num_sampled_rows for batch in batches] == [2, 2, 0, 0], "the teacher reads the corpus where its KL counts"


def test_cross_entropy_can_choose_the_best_checkpoint(tmp_path, scripted):
    scripted((5.0, 3.0), (6.0, 2.0), (9.0, 2.5))  # the highest ROUGE-L comes with a worse cross entropy
    config = run(tmp_path, updates=3, evaluate_every=1, choose_by="cross_entropy")
    train_student(config)
    last = checkpoint.load_step(config.folder / "checkpoints", 3)
    assert (last.state["training"]["best_step"], last.state["training"]["best_score"]) == (2, -2.0)


def test_lengths_may_be_given_in_epochs(tmp_path, scripted):
    scripted(*range(9))
    config = run(tmp_path, updates="1 epoch", batch_size=6, evaluate_every="0.5 epochs")
    train_student(config)
    assert [line["step"] for line in lines(config, "train")] == [1, 2, 3, 4], "24 rows in batches of 6"
    assert [line["step"] for line in lines(config, "validation")] == [0, 2, 4]


def test_the_engine_is_synchronised_once_an_update_before_its_draw(tmp_path, scripted, monkeypatch):
    scripted(1.0)
    seen = []
    draw = Policy.draw
    monkeypatch.setattr(LocalEngine, "sync", lambda self, student, step: seen.append(("sync", step, student is self.model)))
    monkeypatch.setattr(Policy, "draw", lambda self, step: seen.append(("draw", step, True)) or draw(self, step))
    train_student(run(tmp_path, updates=3))
    assert seen == [(what, step, True) for step in range(3) for what in ("sync", "draw")]


@pytest.mark.parametrize(("communicates", "expected"), [(False, 2), (True, 5)])
def test_processes_make_the_same_number_of_passes_where_passes_communicate(monkeypatch, communicates, expected):
    monkeypatch.setattr(training.signals, "gather", lambda values: [*values, 5])  # another process has five
    parts = parts_of(Objective())
    parts.learner.placement = SimpleNamespace(passes_communicate=communicates)
    batches = cut_in(1, [sequence(0), sequence(1)], [])
    filled = filled_up(batches, parts)
    assert len(filled) == expected and filled[:2] == batches
    assert Counts.of(filled) == Counts.of(batches), "what is filled in counts nowhere"


def test_a_micro_batch_without_rows_adds_nothing_to_the_gradient(tmp_path, monkeypatch):
    found = []
    with open_run(tiny_run(tmp_path, "mgsr", training={"batch_size": 2})) as opened:
        parts = build_parts(opened, build_evaluator(opened, opened.models.student))
        draw = parts.learner.objective.select(parts.policy.draw(0))
        for empty in (0, 2):
            fill = [empty_batch(pad_id=parts.pad_id)] * empty
            monkeypatch.setattr(training, "filled_up", lambda batches, parts, fill=fill: [*batches, *fill])
            _, counts, sums = training.gradients(draw, parts, 0)
            gradient = {n: p.grad.clone() for n, p in opened.student.named_parameters() if p.grad is not None}
            found.append((counts, sums, gradient))
            parts.learner.optimizer.zero_grad(set_to_none=True)
    (counts, sums, gradient), (other_counts, other_sums, other) = found
    assert counts == other_counts and sums == other_sums and gradient.keys() == other.keys()
    assert all(torch.equal(other[name], value) for name, value in gradient.items())


def test_epochs_are_whole_updates_and_at_least_one():
    assert [in_updates(length, 100, 8) for length in (7, "1 epoch", "2.5 epochs", "0.01 epochs")] == [7, 12, 31, 1]


@pytest.mark.parametrize("length", ["many", "0 epochs", "-1 epochs", "2 weeks", "nan epochs"])
def test_other_lengths_are_rejected(length):
    with pytest.raises(ConfigError, match=r"updates = .* must be a whole number of updates, or epochs such as '20 epochs'"):
        TrainingConfig(updates=length)


def test_run_json_has_the_cost_of_training(tmp_path):
    config = run(tmp_path, updates=3)
    train_student(config)
    cost = files.read_json(config.folder / "run.json")["cost"]
    assert (cost["updates"], cost["sequences"], cost["generated_tokens"]) == (3, 6, 0)
    assert cost["trained_tokens"] > 6 and cost["seconds"] > 0 and cost["peak_bytes"] > 2**20


@pytest.mark.parametrize("name", ["updates", "batch_size", "keep", "log_every", "generation_batch_size"])
def test_numbers_below_one_are_rejected(name):
    with pytest.raises(ConfigError, match=f"{name} = 0: must be >= 1"):
        TrainingConfig(**{name: 0})
