"""Policies: equal draws on any number of processes and after a resume, with the declared fractions."""

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from redistill.contracts import Draw, Example, Generation, Processes, TokenSequence
from redistill.errors import ConfigError
from redistill.interfaces import Gather
from redistill.policies import (
    Adaptive,
    Buffered,
    Fixed,
    GoldBatches,
    Mixed,
    Policy,
    PolicyConfig,
    Revised,
    StudentGenerated,
    TeacherGenerated,
    TeacherMixed,
)
from redistill.policies.correction import is_finished
from redistill.records import Instruction, Record
from redistill.testing import check_policy
from redistill.testing.policies import drawn
from tests.policies.fixture import RESPONSE_TOKENS, SEED, FakeEngine, PolicyFixture, ids, in_processes, make_fixture

EXAMPLES = [node for member in get_args(PolicyConfig) for node in member.examples()]
COMPOSED = [
    Mixed(source=Revised()),
    Mixed(source=Revised(mode="append")),
    Mixed(source=TeacherGenerated()),
    Mixed(source=Buffered(capacity=8)),
    Buffered(source=Mixed(source=TeacherMixed())),
    Buffered(source=Revised(mode="append"), capacity=20),
    Adaptive(source=Revised(mode="append"), threshold=0.9, decay="constant", capacity=8),
    Revised(source=Adaptive(threshold=0.9, capacity=8)),
]
NODES = [*EXAMPLES, *COMPOSED]
STEPS = 4


@pytest.fixture(scope="module")
def fixture() -> PolicyFixture:
    return make_fixture()


# --- laws of every policy -----------------------------------------------------------------------------------------------


def plain(draws: Sequence[Draw]) -> list[tuple[object, object]]:
    return [(ids(draw.with_role("sft")), ids(draw.with_role("distillation"))) for draw in draws]


def test_every_policy_gives_examples() -> None:
    assert {type(node) for node in EXAMPLES} == set(get_args(PolicyConfig))


@pytest.mark.parametrize("node", COMPOSED, ids=repr)
def test_a_policy_around_another_satisfies_the_laws(node: PolicyConfig) -> None:
    check_policy(node)


@pytest.mark.parametrize("node", NODES, ids=repr)
def test_a_stateless_draw_depends_only_on_the_step(fixture: PolicyFixture, node: PolicyConfig) -> None:
    draws = drawn(fixture.policy(node), range(3))
    again = fixture.policy(node)
    if not again.state_dict():
        assert plain([again.draw(2), again.draw(0)]) == plain([draws[2], draws[0]])


@pytest.mark.parametrize("node", NODES, ids=repr)
def test_four_processes_together_draw_the_same_as_one(fixture: PolicyFixture, node: PolicyConfig) -> None:
    """The law of redistill.testing has two processes and small models; here each has two items, and gold answers, too."""
    whole = drawn(fixture.policy(node), range(STEPS))

    def draw_part(rank: int, gather: Gather) -> list[Draw]:
        return drawn(fixture.policy(node, processes=Processes(rank, 4, gather)), range(STEPS))

    shares = in_processes(4, draw_part)
    assert ids(whole[0].with_role("distillation")) != ids(whole[1].with_role("distillation"))
    for step, one in enumerate(whole):
        parts = [draws[step] for draws in shares]
        sampled = [ids(part.with_role("distillation")) for part in parts]
        answers, additions = ([found for part in sampled for found in part[which]] for which in (slice(2), slice(2, None)))
        assert answers + additions == ids(one.with_role("distillation"))
        for rank, part in enumerate(parts):  # in a draw, gold answers that are also the sampled ones come first
            items = fixture.gold(processes=Processes(rank, 4)).items(step)
            assert sorted(ids(part.with_role("sft"))) == sorted(ids(tuple(item.sequence for item in items)))


@pytest.mark.parametrize("node", NODES, ids=repr)
def test_an_answer_is_to_the_prompt_of_its_item_and_gold_answers_are_shared(fixture: PolicyFixture, node: PolicyConfig) -> None:
    shuffles = "Buffered(" in repr(node) or "Rollouts(" in repr(node)  # an answer may be to another prompt
    for step, draw in enumerate(drawn(fixture.policy(node), range(STEPS))):
        sampled, gold = draw.with_role("distillation"), draw.with_role("sft")
        for sequence in sampled:
            assert sequence.response_ids and not sequence.spans
            assert (sequence.origin == "dataset") == any(sequence is each for each in gold)
        for item, answer in zip(fixture.gold().items(step), sampled):
            assert answer.sample == item.example.sample or answer.origin == "replay" or shuffles


@pytest.mark.parametrize("node", NODES, ids=repr)
def test_the_scoring_batch_size_changes_nothing(fixture: PolicyFixture, node: PolicyConfig) -> None:
    assert plain([fixture.policy(node, at_once=3).draw(0)]) == plain([fixture.policy(node).draw(0)])


@pytest.mark.parametrize("node", [node for node in NODES if node.needs.teacher], ids=repr)
def test_a_policy_that_needs_a_teacher_does_not_work_without(fixture: PolicyFixture, node: PolicyConfig) -> None:
    with pytest.raises(AssertionError):
        drawn(fixture.policy(node, teacher=None, scorer=None, engine=fixture.engine_alone), range(STEPS))


@pytest.mark.parametrize("node", [node for node in NODES if node.sampling is None], ids=repr)
def test_the_student_generates_nothing_if_sampling_is_none(fixture: PolicyFixture, node: PolicyConfig) -> None:
    drawn(fixture.policy(node, engine=None), range(STEPS))


# --- each policy --------------------------------------------------------------------------------------------------------


def test_fixed_returns_the_gold_sequences(fixture: PolicyFixture) -> None:
    draw = fixture.policy(Fixed()).draw(0)
    assert all(item.roles == {"sft", "distillation"} for item in draw.items)
    gold = tuple(item.sequence for item in fixture.gold().items(0))
    assert ids(draw.with_role("distillation")) == ids(draw.with_role("sft")) == ids(gold)
    assert {item.sequence.origin for item in draw.items} == {"dataset"}


def test_student_text_differs_between_steps(fixture: PolicyFixture) -> None:
    policy = fixture.policy(StudentGenerated(), batch_size=len(fixture.examples))
    first, second = ({s.sample: s.response_ids for s in policy.draw(step).with_role("distillation")} for step in (0, 1))
    assert first.keys() == second.keys()
    assert sum(first[sample] != second[sample] for sample in first) > len(first) / 2


def test_the_student_generates_with_the_policys_sampling(fixture: PolicyFixture) -> None:
    asked = []

    def generate(requests, sampling):
        asked.append((requests, sampling))
        return fixture.tools.engine.generate(requests, sampling)

    node = StudentGenerated(temperature=0.7, top_p=0.9)
    fixture.policy(node, engine=FakeEngine(generate)).draw(3)
    ((requests, sampling),) = asked
    assert sampling == node.sampling and (sampling.temperature, sampling.top_p) == (0.7, 0.9)
    assert [request.stream for request in requests] == [
        ("response", 3, item.example.sample) for item in fixture.gold().items(3)
    ]
    assert {request.max_new_tokens for request in requests} == {RESPONSE_TOKENS}


def many_examples(count: int) -> list[Example]:
    record = Record(record_id="r", prompt=Instruction("?"), references=("!",))
    return [Example(sample=i, record=record, prompt_ids=(1,), token_ids=(1, 2), supervised=(False, True)) for i in range(count)]


def test_mixture_text_has_its_origin_and_teacher_share(fixture: PolicyFixture) -> None:
    asked = []

    def generate(requests, sampling):
        asked.append(sampling)
        return fixture.tools.engine.generate(requests, sampling)

    node = TeacherMixed(teacher_share=0.4, temperature=0.7)
    sampled = fixture.policy(node, engine=FakeEngine(generate)).draw(0).with_role("distillation")
    assert {sequence.origin for sequence in sampled} == {"mixture"}
    assert asked == [replace(node.sampling, teacher_share=0.4)] and node.sampling.temperature == 0.7
    alone = fixture.policy(TeacherMixed(teacher_share=0.0)).draw(0).with_role("distillation")
    student = fixture.policy(StudentGenerated()).draw(0).with_role("distillation")
    assert [s.token_ids for s in alone] == [s.token_ids for s in student]
    assert [s.token_ids for s in sampled] != [s.token_ids for s in student]


def test_additions_follow_all_answers(fixture: PolicyFixture) -> None:
    draw = fixture.policy(Mixed(source=Revised(mode="append"))).draw(0)
    sampled, num_items = draw.with_role("distillation"), len(draw.with_role("sft"))
    answers, additions = sampled[:num_items], sampled[num_items:]
    assert {answer.origin for answer in answers} == {"dataset", "student"}
    assert additions and {addition.origin for addition in additions} == {"revised"}


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 1.0])
def test_student_fraction_is_the_probability_of_student_text(fixture: PolicyFixture, fraction: float) -> None:
    written = Generation(token_ids=(3,), finished=True)
    tools = replace(fixture.tools, engine=FakeEngine(lambda requests, sampling: [written for _ in requests]))
    gold = GoldBatches(many_examples(500), batch_size=100, seed=SEED)
    policy = Policy(gold, Mixed(student_fraction=fraction).bind(tools))
    origins = [sequence.origin for step in range(40) for sequence in policy.draw(step).with_role("distillation")]
    share = origins.count("student") / len(origins)
    assert abs(share - fraction) <= 4 * np.sqrt(fraction * (1 - fraction) / len(origins))
    assert set(origins) <= {"dataset", "student"}


def test_the_choice_for_a_sample_differs_between_steps(fixture: PolicyFixture) -> None:
    policy = fixture.policy(Mixed(), batch_size=len(fixture.examples))
    coins = [{s.sample: s.origin for s in policy.draw(step).with_role("distillation")} for step in range(2)]
    assert any(coins[0][sample] != coins[1][sample] for sample in coins[0])


# --- revision -----------------------------------------------------------------------------------------------------------


def test_gold_answers_are_never_revised(fixture: PolicyFixture) -> None:
    draw = fixture.policy(Revised(source=Mixed())).draw(0)
    sampled = draw.with_role("distillation")
    gold = {id(sequence) for sequence in draw.with_role("sft")}
    kept = [sequence for sequence in sampled if sequence.origin == "dataset"]
    assert kept and all(id(sequence) in gold for sequence in kept)
    assert {sequence.origin for sequence in sampled} >= {"dataset", "revised"}


def test_a_revision_keeps_the_prefix_and_inserts_the_teachers_token(fixture: PolicyFixture) -> None:
    fixture.revisions.clear()
    drafts = {s.sample: s for s in fixture.policy(StudentGenerated()).draw(0).with_role("distillation")}
    sampled = fixture.policy(Revised()).draw(0).with_role("distillation")
    assert [r.sample for r in fixture.revisions] == [s.sample for s in sampled if s.origin == "revised"]
    for revision in fixture.revisions:
        before, after, at = revision.before, revision.after, revision.position
        assert before.token_ids == drafts[revision.sample].token_ids, "the draft is what the student writes unrevised"
        assert after.response_ids[:at] == before.response_ids[:at]
        assert after.response_ids[at] != before.response_ids[at]
        assert revision.kl > 0 and revision.step == 0
        ended = is_finished(after.response_ids[: at + 1], fixture.tools.end_ids)
        assert len(after.response_ids) == at + 1 if ended else len(after.response_ids) >= at + 1


def test_a_draft_is_unchanged_if_the_teacher_agrees(fixture: PolicyFixture) -> None:
    """With arg max for both, student and teacher the same model: no token differs."""

    def greedy(requests, sampling):
        return fixture.tools.engine.generate(requests, replace(sampling, temperature=0.0))

    class Same:
        def prepare(self, sequences):
            pass

        def rows(self, batch):
            hidden_ND, head = fixture.tools.scorer.read_student(batch)
            return lambda rows: head.logits(hidden_ND[rows]).log_softmax(-1)

    fixture.revisions.clear()
    policy = fixture.policy(Revised(teacher_token="argmax"), engine=FakeEngine(greedy), scorer=fixture.scorer(teacher=Same()))
    sampled = policy.draw(0).with_role("distillation")
    assert {sequence.origin for sequence in sampled} == {"student"} and not fixture.revisions


def test_a_second_round_revises_the_revised_text(fixture: PolicyFixture) -> None:
    fixture.revisions.clear()
    fixture.policy(Revised(rounds=2)).draw(0)
    by_sample: dict[int, list[tuple[TokenSequence, TokenSequence]]] = {}
    for revision in fixture.revisions:
        by_sample.setdefault(revision.sample, []).append((revision.before, revision.after))
    twice = [pairs for pairs in by_sample.values() if len(pairs) == 2]
    assert twice and all(pairs[1][0] is pairs[0][1] for pairs in twice)


def test_revising_a_source_without_student_text_is_rejected() -> None:
    with pytest.raises(ConfigError, match="generates no student text"):
        Revised(source=Fixed())
    with pytest.raises(ConfigError, match="generates no student text"):
        Revised(source=Mixed(source=Fixed()))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: StudentGenerated(temperature=0.0), "temperature = 0.0: must be > 0"),
        (lambda: StudentGenerated(temperature=float("nan")), "temperature = nan"),
        (lambda: StudentGenerated(top_p=0.0), "top_p = 0.0: must lie in (0, 1]"),
        (lambda: TeacherGenerated(temperature=-1.0), "temperature = -1.0: must be > 0"),
        (lambda: TeacherMixed(top_p=2.0), "top_p = 2.0: must lie in (0, 1]"),
        (lambda: TeacherMixed(teacher_share=1.5), "teacher_share = 1.5: must lie in [0, 1]"),
        (lambda: Mixed(student_fraction=1.5), "student_fraction = 1.5: must lie in [0, 1]"),
        (lambda: Revised(rounds=0), "rounds = 0: must be >= 1"),
    ],
)
def test_values_out_of_range_are_rejected(make, said) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert said in str(caught.value)


# --- the order of the gold data -----------------------------------------------------------------------------------------


def test_an_epoch_holds_every_example_once_also_across_batches() -> None:
    gold = GoldBatches(many_examples(10), batch_size=4, seed=SEED)
    order = [item.example.sample for step in range(5) for item in gold.items(step)]
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert order[:10] != order[10:], "each epoch has a permutation of its own"


def test_another_seed_gives_another_order() -> None:
    orders = [
        [item.example.sample for item in GoldBatches(many_examples(30), batch_size=30, seed=seed).items(0)] for seed in (1, 2)
    ]
    assert orders[0] != orders[1]
