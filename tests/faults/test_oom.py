"""Where memory runs out, the same update is made in smaller pieces: same global batch, same coefficients, same weights."""

from itertools import pairwise

import pytest
import torch
import yaml

from redistill.config.run import encode_run
from redistill.errors import TrainingError
from redistill.generation import local
from redistill.models.student import StudentModule
from redistill.runs.run import train_student
from redistill.storage import files
from redistill.training import checkpoint
from tests.faults.counts import WHOLE
from tests.faults.oom_on_one_process import cut_by_size_alone, limited, train_with_one_short_of_memory
from tests.faults.together import together
from tests.worlds import GPT2, LLAMA, tiny_run

UPDATES = 3
BATCH = 16
REVISED = {"kind": "revised", "source": "student_generated"}


@pytest.fixture(autouse=True)
def known_sizes(monkeypatch):
    cut_by_size_alone(monkeypatch)


def run(folder, out, *, config=LLAMA, **settings):
    settings = {"updates": UPDATES, "batch_size": BATCH, "log_every": 1, **settings}
    return tiny_run(folder, "mgsr", config=config, out=out, policy=REVISED, training=settings)


def lines(config, kind):
    return [line for line in files.read_lines(config.folder / "metrics.jsonl") if line["kind"] == kind]


def trained(config):
    """All weights after training, the clip network's included, and what each update's loss was."""
    train_student(config)
    last = checkpoint.load_step(config.folder / "checkpoints", config.training.updates)
    tensors = {**last.tensors["model"], **last.tensors.get("clip_network", {})}
    return tensors, [line["loss"] for line in lines(config, "train")], last.state


def assert_same(found, expected):
    """No tensor differs by more than a ten-thousandth of its own norm: AdamW makes much of a small difference."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).norm() <= 1e-4 * value.norm(), name


@pytest.mark.parametrize("limit", [8, 4, 2] if WHOLE else [2])  # the last meets all three
def test_an_update_in_smaller_pieces_is_the_same_update(tmp_path, monkeypatch, limit):
    """Out of memory at 16, 8 and 4 sequences at a time."""
    whole, losses, _ = trained(run(tmp_path, "whole"))
    limited(monkeypatch, limit)
    config = run(tmp_path, "pieces")
    pieces, found, state = trained(config)
    assert found == pytest.approx(losses, rel=1e-6)
    assert_same(pieces, whole)
    assert state["memory"][0] == {"size": limit}
    sizes = [BATCH >> halvings for halvings in range(5) if BATCH >> halvings >= limit]
    texts = [line["text"] for line in lines(config, "event")]
    assert texts == [
        f"step 1: out of memory with training.micro_batch_size = {a}; retried with {b}, also used for later batches"
        for a, b in pairwise(sizes)
    ]


def test_an_attempt_leaves_no_gradient_and_no_randomness_behind(tmp_path, monkeypatch):
    """With dropout, and with half of the gradient there when memory runs out: bitwise as with small pieces from the start."""
    small, losses, _ = trained(run(tmp_path, "small", config=GPT2, micro_batch_size=4))
    limited(monkeypatch, 4, spare_every_other=True)
    found, found_losses, _ = trained(run(tmp_path, "halved", config=GPT2, micro_batch_size=8))
    assert found_losses == losses
    assert all(torch.equal(found[name], value) for name, value in small.items())


def test_text_is_the_same_however_few_are_written_at_once(tmp_path, monkeypatch):
    whole, losses, _ = trained(run(tmp_path, "whole"))
    generate, tried = local.generate, []

    def limited_generate(*arguments, batch_size, **settings):
        if arguments[1][0].stream[0] == "evaluate":  # has a batch size of its own
            return generate(*arguments, batch_size=batch_size, **settings)
        tried.append(batch_size)
        if batch_size > 4:
            raise MemoryError
        return generate(*arguments, batch_size=batch_size, **settings)

    monkeypatch.setattr(local, "generate", limited_generate)
    config = run(tmp_path, "pieces", generation_batch_size=16)
    found, found_losses, _ = trained(config)
    assert_same(found, whole)
    assert tried[:3] == [16, 8, 4] and set(tried[3:]) == {4}
    assert found_losses == pytest.approx(losses, rel=1e-6)
    assert [line["event"] for line in lines(config, "event")] == ["out_of_memory"] * 2


def test_a_single_sequence_that_does_not_fit_ends_the_run_with_a_remedy(tmp_path, monkeypatch):
    limited(monkeypatch, 0)
    with pytest.raises(TrainingError, match=r"training\.micro_batch_size = 1: out of memory with a single sequence") as caught:
        train_student(run(tmp_path, "run", batch_size=2))
    assert caught.value.exit_code == 1


def test_other_errors_end_the_run_as_they_are(tmp_path, monkeypatch):
    def broken(self, batch, target, terms):
        raise RuntimeError("a shape that does not fit")

    monkeypatch.setattr(StudentModule, "forward", broken)
    with pytest.raises(RuntimeError, match="a shape"):
        train_student(run(tmp_path, "run", batch_size=2))


@pytest.mark.distributed
def test_when_one_process_runs_out_all_cut_alike(tmp_path):
    """The other process neither hangs nor learns from another batch."""
    alone, losses, _ = trained(run(tmp_path, "alone", batch_size=8))
    config = run(tmp_path, "two", batch_size=8)
    recipe = tmp_path / "two.yaml"
    recipe.write_text(yaml.safe_dump(encode_run(config)), encoding="utf-8")
    codes = together(2, train_with_one_short_of_memory, recipe)
    assert codes == [0, 0], recipe.with_suffix(".log").read_text()
    last = checkpoint.load_step(config.folder / "checkpoints", UPDATES)
    assert last.state["memory"][0] == {"size": 2}
    assert [line["loss"] for line in lines(config, "train")] == pytest.approx(losses, rel=1e-5)
    assert_same({**last.tensors["model"], **last.tensors["clip_network"]}, alone)
