"""The logs of corrections: their numbers, their size, and that they have no effect on training."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from redistill.contracts import TokenSequence
from redistill.models.load import load_model
from redistill.policies import Revised, Revision
from redistill.runs.revisions import POSITIONS, STATISTICS, RevisionLog
from redistill.runs.run import train_student
from redistill.storage import files
from redistill.testing.fixture import make_fixture
from redistill.training import checkpoint
from tests.faults.remains import remains
from tests.worlds import LLAMA, gpt2_tokenizer, tiny_run

SPREAD = {**LLAMA, "initializer_range": 0.15}  # two random models that differ


@cache
def revisions() -> list[Revision]:
    """The corrections that the policy `Revised` makes in two updates of the fixture."""
    found: list[Revision] = []
    source = make_fixture().policy(Revised(), on_revision=found.append)
    for step in range(2):
        source.draw(step)
    assert len(found) >= 4
    return found


def log(folder: Path, updates: int = 2, **changes: Any) -> RevisionLog:
    limit = {"positions_bytes": changes.pop("limit", 2_000_000)}
    config = tiny_run(folder, evaluation={"seeds": [10], "compare": [], "measure": limit})
    return RevisionLog(config, gpt2_tokenizer(), updates, scorer=make_fixture().tools.scorer, **changes)


def lines(written: RevisionLog) -> list[Any]:
    return files.read_lines(written.config.folder / POSITIONS)


def test_at_most_two_corrections_of_an_update_have_divergences_by_token(tmp_path: Path) -> None:
    made, written = revisions(), log(tmp_path)
    for revision in made:
        written(revision)
    expected = [revision for step in (0, 1) for revision in [each for each in made if each.step == step][:2]]
    assert [(line["step"], line["sample"], line["position"]) for line in lines(written)] == [
        (revision.step + 1, revision.sample, revision.position) for revision in expected
    ]
    for line, revision in zip(lines(written), expected, strict=True):
        for name, sequence in (("before", revision.before), ("after", revision.after)):
            assert "".join(line[name]["tokens"]) == written.tokenizer.decode(sequence.response_ids)
            assert line[name].keys() == {"tokens", *STATISTICS}
            assert {len(values) for values in line[name].values()} == {sequence.num_targets}
        assert line["before"]["reverse_kl"][revision.position] == pytest.approx(revision.kl, rel=1e-3)
        kept = slice(0, revision.position)
        assert line["before"]["reverse_kl"][kept] == pytest.approx(line["after"]["reverse_kl"][kept], rel=1e-3)
    assert len(files.read_lines(written.config.folder / "revisions.jsonl")) == len(made)


def test_spans_are_those_of_the_marker(tmp_path: Path) -> None:
    def mark(sequences: Any) -> list[TokenSequence]:
        return [replace(sequence, spans=((0, 1), (0, sequence.num_targets))) for sequence in sequences]

    written = log(tmp_path, mark_spans=mark)
    revision = revisions()[0]
    written(revision)
    (line,) = lines(written)
    assert line["before"]["spans"] == [[0, 1], [0, revision.before.num_targets]]
    assert line["after"]["spans"] == [[0, 1], [0, revision.after.num_targets]]


@pytest.mark.parametrize("limit", [0, 300, 1500])
def test_the_size_limit_grows_with_the_updates_done(tmp_path: Path, limit: int) -> None:
    written, updates = log(tmp_path, updates=12, limit=limit), 12
    path = written.config.folder / POSITIONS
    for step in range(updates):
        for revision in revisions()[:3]:
            written(replace(revision, step=step))
        assert (path.stat().st_size if path.exists() else 0) <= limit * (step + 1) / updates
    steps = [line["step"] for line in lines(written)]
    assert bool(steps) == (limit == 1500) and (not steps or steps[0] < 6 < steps[-1])


def test_the_divergences_are_those_of_both_models_at_the_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At update 1, the student has its initial weights."""
    made, append = list[Revision](), RevisionLog.__call__
    monkeypatch.setattr(RevisionLog, "__call__", lambda self, revision: (made.append(revision), append(self, revision)))
    config = tiny_run(tmp_path, config=SPREAD, training={"updates": 1, "batch_size": 4})
    train_student(config)
    (student, tokenizer), (teacher, _) = (load_model(node) for node in (config.student, config.teacher))
    found = files.read_lines(config.folder / POSITIONS)
    assert len(found) == 2
    for line, revision in zip(found, made):
        for name, sequence in (("before", revision.before), ("after", revision.after)):
            ids = torch.tensor([sequence.token_ids])
            logits = [model.double()(ids).logits[0].detach().numpy() for model in (student, teacher)]
            logq, logp = (z - np.log(np.exp(z).sum(-1, keepdims=True)) for z in logits)
            at = np.flatnonzero(sequence.supervised) - 1
            kl = [float((np.exp(logq[i]) * (logq[i] - logp[i])).sum()) for i in at]
            assert line[name]["reverse_kl"] == pytest.approx(kl, rel=2e-3)
            for column, expected in (("student_logprob", logq), ("teacher_logprob", logp)):
                assert line[name][column] == pytest.approx(expected[at, sequence.response_ids], rel=2e-3)
            assert "".join(line[name]["tokens"]) == tokenizer.decode(sequence.response_ids)
            assert all(0 <= start < stop <= len(at) for start, stop in line[name]["spans"])


def test_logging_has_no_effect_on_training(tmp_path: Path) -> None:
    saved, logged = [], []
    for limit in (0, 2_000_000):
        measured = {"seeds": [10], "compare": [], "measure": {"positions_bytes": limit}}
        config = tiny_run(tmp_path, config=SPREAD, out=str(limit), evaluation=measured)
        train_student(config)
        (step,) = checkpoint.steps(config.folder / "checkpoints")[-1:]
        saved.append(remains(config.folder / "checkpoints" / f"step-{step}"))
        logged.append((config.folder / POSITIONS).exists())
        assert files.read_lines(config.folder / "revisions.jsonl")
    assert saved[0] == saved[1] and logged == [False, True]
