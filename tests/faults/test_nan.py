"""What is not finite never reaches the weights or AdamW's averages, whether it comes from loss, gradient or teacher."""

import dataclasses
import math

import pytest
import torch

from redistill.errors import TrainingError
from redistill.models.student import StudentModule
from redistill.runs.run import train_student
from redistill.storage import files
from redistill.teachers import local
from redistill.training import loop as training
from tests.worlds import tiny_run

UPDATES = 41
EVERY_OTHER = frozenset(range(2, UPDATES, 2))  # 20 of them, the last update not among them
KINDS = ("loss", "gradient", "teacher")


@pytest.fixture
def inject(monkeypatch):
    """Plants a fault of a kind at some updates, counted from 1."""

    def plant(kind, steps):
        draws, cut = [], training.cut
        forward, backward, head = StudentModule.forward, training._backward, local.head

        def is_due():
            return len(draws) in steps

        def counted(draw, size, parts):
            draws.append(draw)
            return cut(draw, size, parts)

        def broken_forward(self, batch, target, terms):
            if not is_due():
                return forward(self, batch, target, terms)
            objective, sums = forward(self, batch, target, [dataclasses.replace(term, coefficient=math.nan) for term in terms])
            return objective, dict.fromkeys(sums, torch.tensor(math.nan))

        def broken_backward(batches, counts, parts, *rest):
            sums = backward(batches, counts, parts, *rest)
            if is_due():
                next(iter(parts.learner.student.model.parameters())).grad.view(-1)[3] = math.inf
            return sums

        def broken_head(model, vocabulary):
            return dataclasses.replace(head(model, vocabulary), scale=math.nan if is_due() else 1.0)

        monkeypatch.setattr(training, "cut", counted)
        if kind == "loss":
            monkeypatch.setattr(StudentModule, "forward", broken_forward)
        if kind == "gradient":
            monkeypatch.setattr(training, "_backward", broken_backward)
        if kind == "teacher":
            monkeypatch.setattr(local, "head", broken_head)

    return plant


@pytest.fixture
def after_each_update(monkeypatch):
    """Weights and AdamW's averages after each update, as one vector each."""
    seen, log_update = [], training._log_update

    def noted(parts, *arguments):
        weights = torch.cat([p.detach().flatten() for p in parts.learner.student.parameters()])
        moments = [
            value.flatten().float()
            for entry in parts.learner.optimizer.state.values()
            for value in entry.values()
            if torch.is_tensor(value)
        ]
        seen.append((weights.clone(), torch.cat(moments).clone()))
        log_update(parts, *arguments)

    monkeypatch.setattr(training, "_log_update", noted)
    return seen


def run(folder, updates, **guards):
    settings = {"updates": updates, "batch_size": 2, "log_every": 1}
    return tiny_run(folder, "kd", training=settings, guards=guards)


def lines(config, kind):
    return [line for line in files.read_lines(config.folder / "metrics.jsonl") if line["kind"] == kind]


@pytest.mark.parametrize("kind", KINDS)
def test_no_fault_at_any_of_20_updates_reaches_weights_or_optimiser(tmp_path, inject, after_each_update, kind):
    inject(kind, EVERY_OTHER)
    config = run(tmp_path, UPDATES, max_skips=1)
    train_student(config)
    assert len(after_each_update) == UPDATES
    assert all(vector.isfinite().all() for pair in after_each_update for vector in pair)
    for step in range(2, UPDATES + 1):
        before, after = after_each_update[step - 2], after_each_update[step - 1]
        is_same = [torch.equal(old, new) for old, new in zip(before, after, strict=True)]
        assert is_same == ([True, True] if step in EVERY_OTHER else [False, False]), step
    events = lines(config, "event")
    assert [line["step"] for line in events] == sorted(EVERY_OTHER)
    assert all(line["event"] == "not_finite" and len(line["samples"]) == 2 for line in events)
    assert all(("the teacher's logits are not finite" in line["text"]) == (kind == "teacher") for line in events)
    assert [line["step"] for line in lines(config, "train")] == list(range(1, UPDATES + 1))


def test_faults_in_a_row_end_the_run_with_a_description_of_the_last(tmp_path, inject):
    inject("teacher", range(1, 99))
    config = run(tmp_path, 9, max_skips=2)
    with pytest.raises(TrainingError, match=r"step 3: the teacher's logits are not finite in \d+ rows") as caught:
        train_student(config)
    assert caught.value.exit_code == 1
    described = files.read_json(config.folder / "guard-step-3.json")
    assert described["loss"] is None and described["divergence"] is None
    assert described["samples"] and described["records"].keys() == {str(sample) for sample in described["samples"]}
    assert all(record.startswith("train:") for record in described["records"].values())
    (batch,) = described["micro_batches"]
    assert set(batch["samples"]) == set(described["samples"])
    assert batch["student"]["not_finite"] == 0 and batch["student"]["min"] < batch["student"]["mean"] < batch["student"]["max"]
    assert batch["teacher"]["not_finite"] > 0 and batch["teacher"]["samples_not_finite"] == described["samples"]


def test_a_broken_teacher_in_the_draw_ends_the_run_or_skips_the_update_and_touches_no_weight(
    tmp_path, monkeypatch, after_each_update
):
    """A policy that reads the teacher may not be able to draw at all; then nothing has been learned from the draw either."""
    head, asked = local.head, []

    def broken(model, vocabulary):
        asked.append(model)
        return dataclasses.replace(head(model, vocabulary), scale=math.nan if len(asked) > 9 else 1.0)

    monkeypatch.setattr(local, "head", broken)  # called once by the constructor, then for each batch
    policy = {"kind": "revised", "source": "student_generated"}
    config = tiny_run(tmp_path, "mgsr", policy=policy, training={"updates": 9, "batch_size": 2}, guards={"max_skips": 2})
    with pytest.raises(TrainingError, match="not finite"):
        train_student(config)
    assert all(vector.isfinite().all() for pair in after_each_update for vector in pair)
