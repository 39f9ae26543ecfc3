"""Buffers of generated text, and DistiLLM's scheduler compared with a reference trace."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from redistill.contracts import Example, Generation, GenerationRequest, Sampling
from redistill.errors import ConfigError
from redistill.policies import Adaptive, Buffered, Fixed, GoldBatches, Mixed, PolicyTools, Revised, Rollouts, TeacherGenerated
from redistill.randomness import generator
from redistill.records import Instruction, Record
from redistill.testing.policies import saved_and_loaded
from tests.policies.fixture import SEED, FakeEngine, PolicyFixture, make_fixture

BATCH, EXAMPLES, STEPS, CAPACITY = 8, 40, 200, 30


@pytest.fixture(scope="module")
def fixture() -> PolicyFixture:
    return make_fixture()


def text(step: int, sample: int) -> int:
    """The single token that the student generates at a step for a sample, unique for each."""
    return 10 + step * EXAMPLES + sample


def write(requests: list[GenerationRequest], sampling: Sampling) -> list[Generation]:
    return [Generation(token_ids=(text(*request.stream[1:]),), finished=True) for request in requests]


def fake_tools(fixture: PolicyFixture, **tools: Any) -> PolicyTools:
    """A student that generates `text`, for prompts that are their sample's number."""
    record = Record(record_id="r", prompt=Instruction("?"), references=("!",))
    examples = [
        Example(sample=i, record=record, prompt_ids=(1,), token_ids=(1, 2), supervised=(False, True)) for i in range(EXAMPLES)
    ]
    gold = GoldBatches(examples, batch_size=BATCH, seed=SEED)
    return replace(fixture.tools, engine=FakeEngine(write), gold=gold, updates=STEPS, **tools)


# --- the scheduler ------------------------------------------------------------------------------------------------------


@dataclass
class Moment:
    """The result of one step of the trace."""

    choice: str
    learned: list[tuple[int, int]]
    buffer: list[tuple[int, int]]
    threshold: float


def losses() -> dict[int, float]:
    """A validation loss after every tenth update (0: before the first): half of epsilon up, up, down, up by much."""
    script = [2.0, 2.06, 2.15, 1.7, 2.2, 2.31, 2.31, 2.5, 2.4, 2.7, 2.9, 2.95, 3.2, 3.1, 3.4, 3.6, 3.6, 3.9, 4.1, 4.3, 4.5]
    return {10 * number: loss for number, loss in enumerate(script)}


def trace(node: Adaptive, gold: GoldBatches) -> Iterator[Moment]:
    """DistiLLM's scheduler as a plain loop (one process, one random number per step)."""
    phi, buffer, observed = node.threshold, [], losses()
    prev = observed[0]
    for t in range(1, STEPS + 1):
        step = t - 1
        samples = [item.example.sample for item in gold.all_items(step)]
        r = generator(SEED, "schedule", step).random()
        s = {"decreasing": phi * (1 - t / STEPS), "constant": phi / 2, "increasing": phi * t / STEPS}[node.decay]
        if r < s or (r < phi and len(buffer) < node.capacity):
            choice, learned = "fresh", [(sample, text(step, sample)) for sample in samples]
            buffer = (buffer + learned)[-node.capacity :]
        elif r < phi:
            picked = generator(SEED, "replay", step).choice(len(buffer), BATCH, replace=False)
            choice, learned = "replay", [buffer[i] for i in picked]
        else:
            choice, learned = "gold", [(sample, 2) for sample in samples]
        if t in observed and observed[t] >= prev + node.epsilon:
            phi, prev = min(phi + node.threshold_step, 1.0), observed[t]
        yield Moment(choice, learned, list(buffer), phi)


@pytest.mark.parametrize("decay", ["decreasing", "constant", "increasing"])
@pytest.mark.parametrize("threshold", [0.0, 0.2])
def test_the_scheduler_matches_the_reference_trace(fixture: PolicyFixture, decay: Any, threshold: float) -> None:
    node = Adaptive(threshold=threshold, epsilon=0.1, threshold_step=0.2, decay=decay, capacity=CAPACITY, coin="step")
    tools, observed = fake_tools(fixture), losses()
    source = node.bind(tools)
    source.observe(observed[0])
    moments = list(trace(node, tools.gold))
    names = {"fresh": "student", "replay": "replay", "gold": "dataset"}
    for step, moment in enumerate(moments):
        sequences = source.sequences(step, tools.gold.all_items(step))
        if step + 1 in observed:
            source.observe(observed[step + 1])
        assert {sequence.origin for sequence in sequences} == {names[moment.choice]}
        assert [(sequence.sample, sequence.token_ids[1]) for sequence in sequences] == moment.learned
        state = source.state_dict()
        assert [(text.sample, text.token_ids[1]) for text in state["buffer"]["sequences"]] == moment.buffer
        assert state["threshold"] == moment.threshold == source.metrics()["threshold"]
        assert source.metrics()["buffered"] == len(moment.buffer)
    seen = Counter(moment.choice for moment in moments)
    assert len(seen) == 3 and min(seen.values()) >= 10, "the trace met every case"
    assert moments[-1].threshold == 1.0 and len({moment.threshold for moment in moments}) > 4
    if threshold == 0.0:
        assert {moment.choice for moment in moments[:20]} == {"gold"}, "nothing is written before the loss has risen"


def test_with_a_choice_per_sample_the_fractions_are_the_declared_ones(fixture: PolicyFixture) -> None:
    tools = fake_tools(fixture)
    source = Adaptive(threshold=0.6, decay="constant", capacity=BATCH).bind(tools)
    origins = [sequence.origin for step in range(STEPS) for sequence in source.sequences(step, tools.gold.all_items(step))]
    for origin, share in (("student", 0.3), ("replay", 0.3), ("dataset", 0.4)):
        assert abs(origins.count(origin) / len(origins) - share) <= 4 * np.sqrt(share * (1 - share) / len(origins))


def test_the_buffer_fills_before_anything_is_replayed(fixture: PolicyFixture) -> None:
    tools = fake_tools(fixture)
    source = Adaptive(threshold=0.5, decay="increasing", capacity=CAPACITY).bind(tools)
    for step in range(STEPS):
        held = source.metrics()["buffered"]
        origins = {sequence.origin for sequence in source.sequences(step, tools.gold.all_items(step))}
        assert held == CAPACITY or "replay" not in origins
    assert held == CAPACITY


def test_a_loss_that_is_not_finite_changes_nothing(fixture: PolicyFixture) -> None:
    source = Adaptive(threshold_step=0.5).bind(fake_tools(fixture))
    for loss in (float("nan"), 2.0, float("inf"), float("nan"), 2.05):
        source.observe(loss)
    assert source.metrics()["threshold"] == 0.0
    saved_and_loaded(source.state_dict())
    source.observe(2.1)
    assert source.metrics()["threshold"] == 0.5
    source.observe(9.0)
    source.observe(19.0)
    assert source.metrics()["threshold"] == 1.0


def test_the_buffer_holds_revised_text_and_replayed_text_is_not_revised(fixture: PolicyFixture) -> None:
    policy = fixture.policy(Adaptive(source=Revised(), threshold=1.0, decay="constant", capacity=16))
    fixture.revisions.clear()
    known: set[tuple[int, ...]] = set()
    origins: Counter[str] = Counter()
    for step in range(6):
        sampled = policy.draw(step).with_role("distillation")
        origins.update(sequence.origin for sequence in sampled)
        assert {s.token_ids for s in sampled if s.origin == "replay"} <= known
        known |= {s.token_ids for s in sampled if s.origin in {"student", "revised"}}
    assert origins["revised"] > 5 and origins["replay"] > 5
    assert len(fixture.revisions) == origins["revised"]
    assert {text.origin for text in policy.state_dict()["buffer"]["sequences"]} <= {"student", "revised"}


# --- the buffer ---------------------------------------------------------------------------------------------------------


def test_a_batch_is_sampled_from_the_newest_texts_without_replacement(fixture: PolicyFixture) -> None:
    tools = fake_tools(fixture)
    source = Buffered(capacity=CAPACITY).bind(tools)
    newest: list[int] = []
    num_fresh = num_drawn = 0
    for step in range(STEPS):
        items = tools.gold.all_items(step)
        fresh = [text(step, item.example.sample) for item in items]
        newest = (newest + fresh)[-CAPACITY:]
        drawn = source.sequences(step, items)
        tokens = [sequence.token_ids[1] for sequence in drawn]
        assert len(set(tokens)) == BATCH and set(tokens) <= set(newest)
        assert [sequence.origin for sequence in drawn] == ["student" if t in fresh else "replay" for t in tokens]
        if len(newest) == CAPACITY:
            num_fresh, num_drawn = num_fresh + sum(t in fresh for t in tokens), num_drawn + BATCH
    share = BATCH / CAPACITY
    assert abs(num_fresh / num_drawn - share) <= 4 * np.sqrt(share * (1 - share) / num_drawn)


def test_gold_answers_are_not_buffered(fixture: PolicyFixture) -> None:
    tools = fake_tools(fixture)
    source = Buffered(source=Mixed(), capacity=CAPACITY).bind(tools)
    plain = Mixed().bind(tools)
    for step in range(10):
        items = tools.gold.all_items(step)
        through, expected = source.sequences(step, items), plain.sequences(step, items)
        for place, answer in enumerate(expected):
            assert (answer.origin == "dataset") == (through[place] is items[place].sequence)
    assert {text.origin for text in source.state_dict()["buffer"]["sequences"]} == {"student"}


def test_additions_are_buffered_after_the_answers(fixture: PolicyFixture) -> None:
    policy = fixture.policy(Buffered(source=Revised(mode="append")))
    assert len(policy.draw(0).with_role("distillation")) == BATCH
    origins = [text.origin for text in policy.state_dict()["buffer"]["sequences"]]
    assert origins == ["student"] * BATCH + ["revised"] * (len(origins) - BATCH) and len(origins) > BATCH


def test_roll_outs_are_rejected(fixture: PolicyFixture) -> None:
    with pytest.raises(ConfigError, match="a buffer cannot contain roll-outs"):
        fixture.policy(Buffered(source=Rollouts(num_rollouts=8))).draw(0)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Buffered(capacity=0), "capacity = 0: must be >= 1"),
        (lambda: Buffered(source=Fixed()), "buffered.source = Fixed: generates no student text"),
        (lambda: Adaptive(source=TeacherGenerated()), "adaptive.source = TeacherGenerated: generates no student text"),
        (lambda: Adaptive(threshold=1.5), "threshold = 1.5: must lie in [0, 1]"),
        (lambda: Adaptive(epsilon=float("nan")), "epsilon = nan: must be >= 0"),
        (lambda: Adaptive(threshold_step=0.0), "threshold_step = 0.0: must lie in (0, 1]"),
    ],
)
def test_values_out_of_range_are_rejected(make, said) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert said in str(caught.value)


@pytest.mark.parametrize("node", [Buffered(), Adaptive(threshold=1.0)], ids=repr)
def test_a_buffer_has_125_batches_by_default(node: Buffered | Adaptive) -> None:
    tools = make_fixture().tools
    assert node.bind(tools)._buffer._sequences.maxlen == 125 * tools.gold.batch_size
