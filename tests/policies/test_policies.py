"""Policies: the same draw on any number of processes, after a resume, and in the mix that was declared."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from redistill.contracts import Example, Instruction, Record, TokenSequence
from redistill.errors import ConfigError
from redistill.policies import Fixed, GoldBatches, Mixed, Policy, PolicyConfig, Revised, StudentGenerated
from redistill.revision import is_finished
from tests.policies.stage import RESPONSE_TOKENS, SEED, Stage, ids, make_stage

EXAMPLES = [node for member in get_args(PolicyConfig) for node in member.examples()]
NODES = [*EXAMPLES, Mixed(source=Revised())]


@pytest.fixture(scope="module")
def stage() -> Stage:
    return make_stage()


# --- laws of every policy -----------------------------------------------------------------------------------------------


def test_every_policy_gives_examples() -> None:
    assert {type(node) for node in EXAMPLES} == set(get_args(PolicyConfig))


@pytest.mark.parametrize("node", NODES, ids=repr)
def test_a_draw_depends_on_the_step_and_nothing_before_it(stage: Stage, node: PolicyConfig) -> None:
    straight = stage.policy(node)
    draws = [straight.draw(step) for step in range(3)]
    resumed = stage.policy(node)
    resumed.load_state_dict(stage.policy(node).state_dict())
    resumed.observe(1.5)
    for step in (2, 0):
        again = resumed.draw(step)
        assert ids(again.gold) == ids(draws[step].gold) and ids(again.sampled) == ids(draws[step].sampled)
    assert ids(draws[0].sampled) != ids(draws[1].sampled)


@pytest.mark.parametrize("node", NODES, ids=repr)
@pytest.mark.parametrize("world", [2, 4])
def test_processes_together_draw_what_one_draws(stage: Stage, node: PolicyConfig, world: int) -> None:
    whole = stage.policy(node).draw(1)
    shares = [stage.policy(node, rank=rank, world=world).draw(1) for rank in range(world)]
    assert all(len(share.sampled) == 8 // world for share in shares)
    assert [found for share in shares for found in ids(share.sampled)] == ids(whole.sampled)
    assert [found for share in shares for found in ids(share.gold)] == ids(whole.gold)


@pytest.mark.parametrize("node", NODES, ids=repr)
def test_each_prompt_of_the_step_is_answered_once_in_order(stage: Stage, node: PolicyConfig) -> None:
    draw = stage.policy(node).draw(0)
    assert [sequence.sample for sequence in draw.sampled] == [sequence.sample for sequence in draw.gold]
    prompts = {example.sample: example.prompt_ids for example in stage.examples}
    for sequence in draw.sampled:
        assert sequence.prompt_ids == prompts[sequence.sample]
        assert 1 <= len(sequence.response_ids) <= RESPONSE_TOKENS
        assert (sequence.origin == "dataset") == any(sequence is gold for gold in draw.gold)


@pytest.mark.parametrize("node", NODES, ids=repr)
def test_how_many_are_scored_at_once_changes_nothing(stage: Stage, node: PolicyConfig) -> None:
    assert ids(stage.policy(node, score_batch_size=3).draw(0).sampled) == ids(stage.policy(node).draw(0).sampled)


# --- each policy --------------------------------------------------------------------------------------------------------


def test_fixed_learns_from_the_gold_sequences_themselves(stage: Stage) -> None:
    draw = stage.policy(Fixed()).draw(0)
    assert all(sampled is gold for sampled, gold in zip(draw.sampled, draw.gold, strict=True))
    assert {sequence.origin for sequence in draw.sampled} == {"dataset"}


def test_student_text_is_new_every_step(stage: Stage) -> None:
    policy = stage.policy(StudentGenerated(), batch_size=len(stage.examples))
    first, second = ({s.sample: s.response_ids for s in policy.draw(step).sampled} for step in (0, 1))
    assert first.keys() == second.keys()
    assert sum(first[sample] != second[sample] for sample in first) > len(first) / 2


def test_the_student_writes_as_the_policy_says(stage: Stage) -> None:
    asked = []

    def generate(requests, sampling):
        asked.append((requests, sampling))
        return stage.tools.generate(requests, sampling)

    node = StudentGenerated(temperature=0.7, top_p=0.9)
    stage.policy(node, generate=generate).draw(3)
    ((requests, sampling),) = asked
    assert sampling == node.sampling and (sampling.temperature, sampling.top_p) == (0.7, 0.9)
    assert [request.stream for request in requests] == [("response", 3, item.example.sample) for item in stage.gold().items(3)]
    assert {request.max_new_tokens for request in requests} == {RESPONSE_TOKENS}


def many_examples(count: int) -> list[Example]:
    record = Record(record_id="r", prompt=Instruction("?"), references=("!",))
    return [Example(sample=i, record=record, prompt_ids=(1,), token_ids=(1, 2), supervised=(False, True)) for i in range(count)]


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 1.0])
def test_the_mix_is_the_declared_one(stage: Stage, fraction: float) -> None:
    tools = replace(stage.tools, generate=lambda requests, sampling: [_Written() for _ in requests])
    gold = GoldBatches(many_examples(500), batch_size=100, seed=SEED)
    policy = Policy(gold, Mixed(student_fraction=fraction).bind(tools))
    origins = [sequence.origin for step in range(40) for sequence in policy.draw(step).sampled]
    share = origins.count("student") / len(origins)
    assert abs(share - fraction) <= 4 * np.sqrt(fraction * (1 - fraction) / len(origins))
    assert set(origins) <= {"dataset", "student"}


class _Written:
    token_ids = (3,)
    finished = True


def test_the_coin_of_a_sample_falls_anew_each_step(stage: Stage) -> None:
    policy = stage.policy(Mixed(), batch_size=len(stage.examples))
    coins = [{s.sample: s.origin for s in policy.draw(step).sampled} for step in range(2)]
    assert any(coins[0][sample] != coins[1][sample] for sample in coins[0])


# --- revision -----------------------------------------------------------------------------------------------------------


def test_gold_answers_are_never_revised(stage: Stage) -> None:
    draw = stage.policy(Revised(source=Mixed())).draw(0)
    gold = {id(sequence) for sequence in draw.gold}
    kept = [sequence for sequence in draw.sampled if sequence.origin == "dataset"]
    assert kept and all(id(sequence) in gold for sequence in kept)
    assert {sequence.origin for sequence in draw.sampled} >= {"dataset", "revised"}


def test_a_revision_keeps_the_prefix_and_puts_the_teachers_token(stage: Stage) -> None:
    stage.revisions.clear()
    drafts = {s.sample: s for s in stage.policy(StudentGenerated()).draw(0).sampled}
    draw = stage.policy(Revised()).draw(0)
    assert [r.sample for r in stage.revisions] == [s.sample for s in draw.sampled if s.origin == "revised"]
    for revision in stage.revisions:
        before, after, at = revision.before, revision.after, revision.position
        assert before.token_ids == drafts[revision.sample].token_ids, "the draft is what the student writes unrevised"
        assert after.response_ids[:at] == before.response_ids[:at]
        assert after.response_ids[at] != before.response_ids[at]
        assert revision.kl > 0 and revision.step == 0
        ended = is_finished(after.response_ids[: at + 1], stage.tools.end_ids)
        assert len(after.response_ids) == at + 1 if ended else len(after.response_ids) >= at + 1


def test_a_teacher_that_agrees_leaves_the_draft_alone(stage: Stage) -> None:
    """With arg max for both, student and teacher the same model: no token differs."""

    def greedy(requests, sampling):
        return stage.tools.generate(requests, replace(sampling, temperature=0.0))

    class Same:
        capabilities = stage.tools.teacher.capabilities

        def rows(self, batch):
            hidden_ND, head = stage.tools.student_rows(batch)
            return lambda rows: head.logits(hidden_ND[rows]).log_softmax(-1)

    stage.revisions.clear()
    policy = stage.policy(Revised(teacher_token="argmax"), generate=greedy, teacher=Same())
    draw = policy.draw(0)
    assert {sequence.origin for sequence in draw.sampled} == {"student"} and not stage.revisions


def test_two_rounds_revise_the_revised(stage: Stage) -> None:
    stage.revisions.clear()
    stage.policy(Revised(rounds=2)).draw(0)
    by_sample: dict[int, list[tuple[TokenSequence, TokenSequence]]] = {}
    for revision in stage.revisions:
        by_sample.setdefault(revision.sample, []).append((revision.before, revision.after))
    twice = [pairs for pairs in by_sample.values() if len(pairs) == 2]
    assert twice and all(pairs[1][0] is pairs[0][1] for pairs in twice)


def test_revising_what_writes_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="writes no student text"):
        Revised(source=Fixed())
    with pytest.raises(ConfigError, match="writes no student text"):
        Revised(source=Mixed(source=Fixed()))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: StudentGenerated(temperature=0.0), "temperature = 0.0: must be > 0"),
        (lambda: StudentGenerated(temperature=float("nan")), "temperature = nan"),
        (lambda: StudentGenerated(top_p=0.0), "top_p = 0.0: must lie in (0, 1]"),
        (lambda: Mixed(student_fraction=1.5), "student_fraction = 1.5: must lie in [0, 1]"),
        (lambda: Revised(rounds=0), "rounds = 0: must be >= 1"),
    ],
)
def test_values_out_of_range_are_refused(make, said) -> None:
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
