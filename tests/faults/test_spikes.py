"""A loss that leaps is seen at its own update, and ordinary losses never raise an alarm."""

import json
import math

import pytest

from redistill.randomness import generator
from redistill.runs.run import train_student
from redistill.storage import files
from redistill.training import loop as training
from redistill.training.guards.spikes import FEWEST, SpikeDetector
from tests.worlds import tiny_run

FACTOR = 5.0
UPDATES = 500


def ordinary(number):
    """Losses of a run as they come: a fall from high to low, epochs, batches that differ, other text from some update on.

    Batches scatter by 3 % (large ones, cross entropy) to 40 % (small ones, a divergence near its end).
    """
    rng = generator(20, "losses", number)
    scatter, floor = rng.uniform(0.03, 0.4), 10 ** rng.uniform(-3, 0.3)
    height, decay, epoch = rng.uniform(2, 20), rng.uniform(10, 200), int(rng.integers(30, 150))
    other_text_from, other_text = int(rng.integers(50, 400)), rng.uniform(0.5, 2.0)
    for step in range(UPDATES):
        loss = floor * (1 + height * math.exp(-step / decay)) * 0.85 ** (step // epoch)
        loss *= other_text if step >= other_text_from and rng.random() < 0.5 else 1.0
        yield loss * math.exp(scatter * rng.normal())


@pytest.mark.parametrize("number", range(10))
def test_ordinary_runs_raise_no_alarm(number):
    detector = SpikeDetector(FACTOR)
    assert [step for step, loss in enumerate(ordinary(number)) if detector.check(loss) is not None] == []


@pytest.mark.parametrize("number", range(10))
def test_a_hundredfold_loss_is_seen_at_once_wherever_it_comes(number):
    detector, missed = SpikeDetector(FACTOR), []
    for step, loss in enumerate(ordinary(number)):
        if step >= FEWEST:
            probe = SpikeDetector(FACTOR)
            probe.load_state_dict(json.loads(json.dumps(detector.state_dict())))
            if probe.check(100 * loss) is None:
                missed.append(step)
        detector.check(loss)
    assert missed == []


def test_a_loss_below_zero_is_judged_by_its_size():
    detector = SpikeDetector(FACTOR)
    assert all(detector.check(-0.2 - 0.01 * (step % 4)) is None for step in range(30))
    assert detector.check(-20.0) is not None and detector.check(20.0) is not None


def test_spikes_do_not_raise_the_bar_for_the_next_but_a_new_level_is_learned():
    detector = SpikeDetector(FACTOR)
    for _ in range(64):
        detector.check(2.0)
    seen = [detector.check(200.0) is not None for _ in range(64)]
    assert all(seen[:32]) and not any(seen[34:])


def test_a_spike_in_training_is_logged_with_its_samples_and_skipped_if_asked(tmp_path, monkeypatch):
    averages, seen = training.averages, []

    def leaping(objective, counts, sums):
        seen.append(counts)
        means = averages(objective, counts, sums)
        return means | ({"loss": 100 * means["loss"]} if len(seen) == 14 else {})

    monkeypatch.setattr(training, "averages", leaping)
    settings = {"updates": 15, "batch_size": 2, "log_every": 1}
    config = tiny_run(tmp_path, "sft", teacher=None, training=settings, guards={"on_spike": "skip"})
    train_student(config)
    events = [line for line in files.read_lines(config.folder / "metrics.jsonl") if line["kind"] == "event"]
    assert [(line["event"], line["step"], len(line["samples"])) for line in events] == [("loss_spike", 14, 2)]
    assert "update skipped" in events[0]["text"]
