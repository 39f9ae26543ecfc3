"""Text of several updates that is generated at once: order, state, and the age of the weights."""

from dataclasses import replace

import pytest

from redistill.contracts import Processes
from redistill.policies import Adaptive, Fixed, Mixed, Revised, StudentGenerated
from redistill.policies.ahead import AheadSource
from redistill.policies.order import GoldBatches
from redistill.policies.state import restore, store
from redistill.testing.fixture import make_fixture

UPDATES = 10
NODES = [
    StudentGenerated(),
    Mixed(source=StudentGenerated(), student_fraction=0.5),
    Revised(),
    Revised(mode="append"),
    Adaptive(capacity=64),
]


def ahead(node, num_steps=4, *, weights_step=lambda step: step, fixture=None):
    """The wrapped source of a policy, and its tools."""
    tools = (fixture or make_fixture()).tools
    return AheadSource(node.bind(tools), tools.gold, num_steps=num_steps, updates=UPDATES, weights_step=weights_step), tools


def drawn(source, tools, steps):
    return [
        [(each.sample, each.token_ids, each.origin) for each in source.sequences(step, tools.gold.items(step))]
        for step in steps
    ]


@pytest.mark.parametrize("node", NODES, ids=str)
def test_each_step_has_an_answer_for_each_of_its_items(node) -> None:
    source, tools = ahead(node)
    for step in range(UPDATES):
        items = tools.gold.items(step)
        found = source.sequences(step, items)
        assert len(found) >= len(items)
        for item, answer in zip(items, found):
            assert answer.origin == "replay" or answer.sample == item.example.sample
        assert source.metrics()["staleness"] == step % 4


def test_one_step_ahead_is_the_source_itself() -> None:
    source, tools = ahead(StudentGenerated(), num_steps=1)
    plain = StudentGenerated().bind(tools)
    assert drawn(source, tools, range(4)) == drawn(plain, tools, range(4))


def test_the_first_step_of_each_draw_has_the_text_of_the_source_itself() -> None:
    source, tools = ahead(StudentGenerated())
    plain = StudentGenerated().bind(tools)
    assert drawn(source, tools, range(8))[::4] == drawn(plain, tools, [0, 4])


def test_an_example_of_two_steps_has_two_answers() -> None:
    source, tools = ahead(StudentGenerated(), num_steps=8)
    texts: dict[int, set[tuple[int, ...]]] = {}
    times: dict[int, int] = {}
    for step in range(8):
        for answer in source.sequences(step, tools.gold.items(step)):
            texts.setdefault(answer.sample, set()).add(answer.token_ids)
            times[answer.sample] = times.get(answer.sample, 0) + 1
    assert max(times.values()) > 1
    assert any(len(texts[sample]) == count > 1 for sample, count in times.items())


@pytest.mark.parametrize("node", NODES, ids=str)
def test_a_resumed_run_has_the_same_sequences(node) -> None:
    source, tools = ahead(node)
    drawn(source, tools, range(6))
    state = restore(store(source.state_dict()))
    expected = drawn(source, tools, range(6, UPDATES))
    again, tools = ahead(node)
    again.load_state_dict(state)
    assert drawn(again, tools, range(6, UPDATES)) == expected


def test_a_draw_that_was_interrupted_is_made_again() -> None:
    source, tools = ahead(StudentGenerated())
    before = source.state_dict()
    expected = drawn(source, tools, [0])
    source.load_state_dict(before)
    assert drawn(source, tools, [0]) == expected


def test_steps_after_a_discarded_draw_are_generated_up_to_the_next_multiple() -> None:
    calls: list[int] = []
    source, tools = ahead(StudentGenerated(), weights_step=lambda step: calls.append(step) or step)
    drawn(source, tools, [1, 2, 3, 4])
    assert calls == [1, 4]


def test_staleness_is_counted_from_the_weights_of_the_engine() -> None:
    source, tools = ahead(StudentGenerated(), num_steps=1, weights_step=lambda step: step // 3 * 3)
    found = []
    for step in range(5):
        source.sequences(step, tools.gold.items(step))
        found.append(source.metrics()["staleness"])
    assert found == [0, 1, 2, 0, 1]


def test_two_processes_have_the_answers_of_one() -> None:
    source, tools = ahead(StudentGenerated())
    whole = drawn(source, tools, range(4))
    parts = []
    for rank in range(2):
        gold = GoldBatches(
            make_fixture().examples, batch_size=tools.gold.batch_size, seed=tools.seed, processes=Processes(rank=rank, world=2)
        )
        mine = replace(tools, gold=gold)
        source = AheadSource(StudentGenerated().bind(mine), gold, num_steps=4, updates=UPDATES, weights_step=lambda step: step)
        parts.append(drawn(source, mine, range(4)))
    assert [one + two for one, two in zip(*parts, strict=True)] == whole


def test_gold_answers_keep_their_index() -> None:
    source, tools = ahead(Fixed())
    for step in range(4):
        items = tools.gold.items(step)
        assert [each.token_ids for each in source.sequences(step, items)] == [item.sequence.token_ids for item in items]
