"""The loop: learning rates by step, which parameters decay, how a draw is cut, and what happens when an update is not made."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from redistill import checkpoint, files, training
from redistill.bench import Bench
from redistill.clipping import DacKL, DacKLConfig
from redistill.contracts import Draw, TokenSequence
from redistill.errors import ConfigError, TrainingError
from redistill.models.student import StudentModule
from redistill.objectives import Objective
from redistill.run import train_student
from redistill.training import OptimiserConfig, TrainingConfig, cut, parameter_groups, set_learning_rates
from tests.worlds import tiny_run

# --- learning rates -----------------------------------------------------------------------------------------------------


def rates(config, updates, steps=None):
    """The student's learning rate for each update."""
    parameter = nn.Parameter(torch.zeros(2, 2))
    groups = [{"params": [parameter], "peak_learning_rate": config.learning_rate, "rate_name": "learning_rate"}]
    optimizer = torch.optim.AdamW(groups)
    found = []
    for step in range(updates) if steps is None else steps:
        logged = set_learning_rates(optimizer, config, step, updates)
        assert optimizer.param_groups[0]["lr"] == logged["learning_rate"]
        found.append(logged["learning_rate"])
    return found


def test_the_cosine_starts_at_the_peak_is_half_way_in_the_middle_and_ends_low():
    config = OptimiserConfig(learning_rate=1e-3, final_learning_rate=1e-5)
    found = rates(config, 100, steps=[0, 50, 100])
    assert found == pytest.approx([1e-3, (1e-3 + 1e-5) / 2, 1e-5])


def test_the_cosine_is_that_of_torch():
    config = OptimiserConfig(learning_rate=2e-3, final_learning_rate=1e-4)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30, eta_min=1e-4)
    expected = []
    for _ in range(30):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates(config, 30) == pytest.approx(expected, rel=1e-9)


def test_a_constant_rate_stays():
    assert rates(OptimiserConfig(learning_rate=1e-3, schedule="constant"), 5) == [1e-3] * 5


def test_warm_up_rises_in_a_line_to_the_schedule():
    config = OptimiserConfig(learning_rate=1.0, final_learning_rate=0.0, schedule="constant", warmup_updates=4)
    assert rates(config, 6) == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])


def test_a_rate_is_a_function_of_the_step_alone():
    config = OptimiserConfig(warmup_updates=3)
    straight = rates(config, 20)
    assert rates(config, 20, steps=[7, 3, 19]) == [straight[7], straight[3], straight[19]]


def test_the_clip_network_has_a_rate_of_its_own():
    student = student_module()
    config = OptimiserConfig(learning_rate=1e-3, clip_network_learning_rate=1e-2, final_learning_rate=0.0)
    optimizer = torch.optim.AdamW(parameter_groups(student, student.clip_network, config))
    assert set_learning_rates(optimizer, config, 0, 10) == {"learning_rate": 1e-3, "clip_network_learning_rate": 1e-2}
    at_half = set_learning_rates(optimizer, config, 5, 10)
    assert at_half == pytest.approx({"learning_rate": 5e-4, "clip_network_learning_rate": 5e-3})


# --- parameters ---------------------------------------------------------------------------------------------------------


def student_module():
    body = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    body[0].bias.requires_grad_(False)
    return StudentModule(body, vocabulary=4, divergence=DacKL(DacKLConfig(), 4, 0))


def test_matrices_decay_vectors_do_not_and_each_parameter_is_in_one_group():
    student = student_module()
    groups = parameter_groups(student, student.clip_network, OptimiserConfig(weight_decay=0.1))
    placed = {id(p): group for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(placed)
    for name, parameter in student.named_parameters():
        if not parameter.requires_grad:
            assert id(parameter) not in placed
            continue
        group = placed[id(parameter)]
        assert group["weight_decay"] == (0.1 if parameter.ndim >= 2 else 0.0)
        expected = "clip_network_learning_rate" if name.startswith("clip_network.") else "learning_rate"
        assert group["rate_name"] == expected


def test_without_a_rate_of_its_own_the_clip_network_takes_the_students():
    student = student_module()
    groups = parameter_groups(student, student.clip_network, OptimiserConfig(learning_rate=3e-4))
    assert {group["peak_learning_rate"] for group in groups} == {3e-4}


# --- micro-batches ------------------------------------------------------------------------------------------------------


def sequence(sample, origin="dataset"):
    return TokenSequence(sample=sample, token_ids=(1, 2, 3), supervised=(False, True, True), origin=origin)


def cut_in(size, gold, sampled, objective=None):
    parts = SimpleNamespace(objective=objective or Objective(), pad_id=0, accelerator=SimpleNamespace(device="cpu"))
    return cut(Draw(gold=tuple(gold), sampled=tuple(sampled)), size, parts)


def test_a_draw_is_cut_into_micro_batches_that_keep_partners_together():
    gold, sampled = [sequence(i) for i in range(5)], [sequence(i, "student") for i in range(5)]
    batches = cut_in(2, gold, sampled)
    assert [batch.samples for batch in batches] == [(0, 1, 0, 1), (2, 3, 2, 3), (4, 4)]
    assert [batch.num_sampled for batch in batches] == [2, 2, 1]


def test_without_a_size_the_whole_share_is_one_micro_batch():
    (batch,) = cut_in(None, [sequence(i) for i in range(5)], [])
    assert batch.samples == (0, 1, 2, 3, 4)


def test_a_draw_of_one_kind_alone_is_cut_as_well():
    assert [len(batch.samples) for batch in cut_in(2, [], [sequence(i, "student") for i in range(3)])] == [2, 1]


# --- the loop -----------------------------------------------------------------------------------------------------------


def run(folder: Path, **settings):
    settings = {"updates": 4, "batch_size": 2, "log_every": 1, **settings}
    return tiny_run(folder, "sft", teacher=None, training=settings)


@pytest.fixture
def scripted(monkeypatch):
    """Validation scores as a test wants them, one a validation."""

    def script(*scores):
        left = list(scores)
        monkeypatch.setattr(Bench, "validate", lambda self: {"rouge_l": left.pop(0), "cross_entropy": 1.0})

    return script


def lines(config, kind):
    return [line for line in files.read_lines(config.folder / "metrics.jsonl") if line["kind"] == kind]


def test_the_best_checkpoint_is_kept_and_exported(tmp_path, scripted):
    scripted(5.0, 9.0, 9.0, 2.0)
    config = run(tmp_path, evaluate_every=1, keep=1)
    train_student(config)
    assert checkpoint.steps(config.folder / "checkpoints") == [2, 4]
    last = checkpoint.load_step(config.folder / "checkpoints", 4)
    assert (last.state["training"]["best_step"], last.state["training"]["best_score"]) == (2, 9.0)


def test_training_stops_when_validation_no_longer_gains(tmp_path, scripted):
    scripted(5.0, 4.0, 3.0)
    config = run(tmp_path, updates=9, evaluate_every=1, patience=2)
    train_student(config)
    assert [line["step"] for line in lines(config, "train")] == [1, 2, 3]
    assert files.read_json(config.folder / "run.json")["status"] == "trained"


def test_a_run_that_stopped_early_is_not_taken_up_again(tmp_path, scripted):
    scripted(5.0, 4.0)
    config = run(tmp_path, updates=9, evaluate_every=1, patience=1)
    train_student(config)
    files.remove_folder(config.folder / "model")  # as if the machine had failed before the export
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
    assert [line["step"] for line in lines(config, "validation")] == [4, 7]


def test_an_update_that_is_not_finite_is_not_made(tmp_path, scripted, monkeypatch):
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
    assert steps[2].state["guard"] == {"skips_in_a_row": 0, "skips": 1}


def test_too_many_in_a_row_end_the_run_with_exit_code_1(tmp_path, monkeypatch):
    averages = training.averages
    monkeypatch.setattr(training, "averages", lambda *a: averages(*a) | {"loss": math.inf})
    with pytest.raises(TrainingError, match="not finite 2 times in a row") as caught:
        train_student(run(tmp_path, max_skips=1))
    assert caught.value.exit_code == 1


def test_gradients_do_not_pile_up_over_skipped_updates(tmp_path, scripted, monkeypatch):
    """What was skipped must not come back with the next update."""
    scripted(1.0)
    norms = []
    clip = training._clip

    def noted(parts, max_norm):
        norms.append(clip(parts, max_norm)["grad_norm"])
        return {"grad_norm": norms[-1]}

    monkeypatch.setattr(training, "_clip", noted)
    monkeypatch.setattr(training.FiniteGuard, "check", lambda self, *a, **k: False)
    train_student(run(tmp_path, updates=4, batch_size=24))
    assert norms == pytest.approx([norms[0]] * 4, rel=1e-4), "the same batch and the same weights, four times"


@pytest.mark.parametrize("name", ["updates", "batch_size", "keep", "log_every", "generation_batch_size"])
def test_numbers_below_one_are_refused(name):
    with pytest.raises(ConfigError, match=f"{name} = 0: must be >= 1"):
        TrainingConfig(**{name: 0})
