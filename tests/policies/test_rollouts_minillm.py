"""MiniLLM's roll-outs: generated and scored once a cycle, with the values of the equations, and resumed bitwise."""

from dataclasses import astuple, replace

import numpy as np
import pytest
import torch

from redistill.contracts import Processes, TokenSequence, items_of
from redistill.data.collate import collate
from redistill.errors import ConfigError
from redistill.policies import Rollouts, StudentGenerated, TeacherMixed
from redistill.testing.policies import plain_state, saved_and_loaded
from tests.policies.fixture import RESPONSE_TOKENS, FakeEngine, PolicyFixture, ids, in_processes, make_fixture

BATCH = 8
NODE = Rollouts(num_rollouts=16, inner_epochs=2)  # a cycle: two updates a pass, two passes
CYCLE = 4


@pytest.fixture(scope="module")
def fixture() -> PolicyFixture:
    return make_fixture()


def numbers(sequences) -> list[tuple]:
    return [(*entry, astuple(sequence.rollout)) for entry, sequence in zip(ids(sequences), sequences, strict=True)]


def draws(policy, steps) -> list[tuple[TokenSequence, ...]]:
    return [policy.draw(step).with_role("distillation") for step in steps]


# --- cycles and passes --------------------------------------------------------------------------------------------------


def test_each_pass_has_every_rollout_once_in_its_own_order(fixture: PolicyFixture) -> None:
    first, second, third, fourth = (ids(drawn) for drawn in draws(fixture.policy(NODE), range(CYCLE)))
    assert sorted(first + second) == sorted(third + fourth)
    assert first + second != third + fourth
    assert len(first + second) == 16 and {origin for _, origin, _ in first} == {"mixture"}


def test_a_cycle_answers_the_prompts_of_the_next_gold_steps(fixture: PolicyFixture) -> None:
    policy, gold = fixture.policy(NODE), fixture.gold()
    for cycle in range(3):
        written = draws(policy, (cycle * CYCLE, cycle * CYCLE + 1))
        asked = [[item.example.prompt_ids for item in gold.items(step)] for step in (2 * cycle, 2 * cycle + 1)]
        assert [[sequence.prompt_ids for sequence in drawn] for drawn in written] == asked


@pytest.mark.parametrize(("num_rollouts", "updates"), [(1, 1), (8, 1), (15, 1), (16, 2), (23, 2), (24, 3)])
def test_a_pass_is_cut_to_whole_batches_and_has_at_least_one(fixture: PolicyFixture, num_rollouts: int, updates: int) -> None:
    policy = fixture.policy(replace(NODE, num_rollouts=num_rollouts))
    batches = [sorted(sequence.sample for sequence in drawn) for drawn in draws(policy, range(updates))]
    again = [sequence.sample for drawn in draws(policy, range(updates, 2 * updates)) for sequence in drawn]
    assert sorted(again) == sorted(sample for batch in batches for sample in batch)
    assert all(len(batch) == BATCH for batch in batches)


def test_text_is_generated_and_scored_once_a_cycle(fixture: PolicyFixture) -> None:
    written, read = [], []

    def mixture(requests, sampling):
        written.append((len(requests), sampling))
        return fixture.tools.engine.generate(requests, sampling)

    def rows(batch):
        read.append(batch.num_sampled)
        return fixture.tools.scorer.read_student(batch)

    node = replace(NODE, source=TeacherMixed(teacher_share=0.3, temperature=0.8))
    policy = fixture.policy(node, engine=FakeEngine(mixture), scorer=fixture.scorer(read_student=rows, at_once=6), at_once=6)
    draws(policy, range(CYCLE))
    assert [count for count, _ in written] == [16] and read == [6, 6, 4]
    draws(policy, range(CYCLE, 2 * CYCLE))
    assert sum(count for count, _ in written) == 32 and read == [6, 6, 4] * 2
    assert {(sampling.temperature, sampling.teacher_share) for _, sampling in written} == {(0.8, 0.3)}


def test_a_prompt_that_occurs_twice_in_a_pool_has_two_answers(fixture: PolicyFixture) -> None:
    drawn = draws(fixture.policy(replace(NODE, num_rollouts=40)), range(5))
    answers: dict[int, list[tuple[int, ...]]] = {}
    for sequence in (sequence for batch in drawn for sequence in batch):
        answers.setdefault(sequence.sample, []).append(sequence.response_ids)
    assert {len(found) for found in answers.values()} == {2} and len(answers) == len(fixture.examples)
    assert sum(first != second for first, second in answers.values()) > len(answers) / 2


def test_at_most_one_rollout_is_returned_per_item(fixture: PolicyFixture) -> None:
    source = NODE.bind(fixture.tools)
    assert source.sequences(0, []) == []
    assert [s.sample for s in source.sequences(0, fixture.gold().items(0)[:3])] == [
        i.example.sample for i in fixture.gold().items(0)[:3]
    ]


# --- advantages and importance weights ----------------------------------------------------------------------------------


def log_probabilities(fixture: PolicyFixture, sequence: TokenSequence) -> tuple[np.ndarray, np.ndarray]:
    """log q and log p of the targets, one sequence at a time, in float64 from the hidden states on."""
    batch = collate(items_of([sequence], "distillation"), pad_id=fixture.pad_id)
    hidden_ND, head = fixture.tools.scorer.read_student(batch)
    logq_NV = torch.log_softmax(hidden_ND.double() @ head.weight_VD.double().T, -1)
    logp_NV = fixture.tools.scorer.teacher.rows(batch)(slice(0, sequence.num_targets)).log_softmax(dim=-1)
    return tuple(rows_NV.gather(1, batch.target_N[:, None])[:, 0].detach().double().numpy() for rows_NV in (logq_NV, logp_NV))


def oracle(fixture: PolicyFixture, node: Rollouts, drawn) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Old log-probabilities, advantages and importance weights of a mini-batch, in loops."""
    read = [log_probabilities(fixture, sequence) for sequence in drawn]
    returns = []
    for logq, logp in read:
        reward = np.clip((logp - logq) / node.reward_scaling, -node.reward_clip, node.reward_clip)
        sums = [sum(node.discount ** (u - t) * reward[u] for u in range(t, len(reward))) for t in range(len(reward))]
        returns.append(np.array(sums) / (np.arange(len(reward), 0, -1) if node.length_normalise else 1))
    pooled = np.concatenate(returns)
    if node.whiten == "padded":
        pooled = np.concatenate([pooled, np.zeros(len(drawn) * RESPONSE_TOKENS - len(pooled))])
    mean, deviation = (0.0, 1.0) if node.whiten == "none" else (pooled.mean(), np.sqrt(pooled.var() + 1e-8))
    share = node.teacher_share
    weights = [np.exp(logq) / ((1 - share) * np.exp(logq) + share * np.exp(logp)) for logq, logp in read]
    return [(logq, (one - mean) / deviation, weight) for (logq, _), one, weight in zip(read, returns, weights, strict=True)]


@pytest.mark.parametrize(
    "node",
    [
        NODE,
        replace(NODE, whiten="padded", reward_clip=2.0, reward_scaling=1.0),
        replace(NODE, whiten="none", discount=0.5, source=TeacherMixed(teacher_share=0.6)),
        replace(NODE, length_normalise=False, source=StudentGenerated()),
    ],
    ids=["defaults", "padded", "unwhitened", "student"],
)
def test_a_mini_batch_has_the_values_of_the_equations(fixture: PolicyFixture, node: Rollouts) -> None:
    policy = fixture.policy(node)
    for step in (0, CYCLE - 1):
        drawn = policy.draw(step).with_role("distillation")
        for sequence, (old, advantages, importances) in zip(drawn, oracle(fixture, node, drawn), strict=True):
            close = {"rtol": 2e-4, "atol": 2e-4}
            np.testing.assert_allclose(sequence.rollout.old_logprobs, old, **close)
            np.testing.assert_allclose(sequence.rollout.advantages, advantages, **close)
            np.testing.assert_allclose(sequence.rollout.importances, importances, **close)
        weights = {weight for sequence in drawn for weight in sequence.rollout.importances}
        assert (weights == {1.0}) == (node.teacher_share == 0)


def test_old_log_probabilities_are_those_of_generation_until_the_next_cycle(fixture: PolicyFixture) -> None:
    moved = {"now": False}

    def rows(batch):
        hidden_ND, head = fixture.tools.scorer.read_student(batch)
        return (hidden_ND * 1.1 if moved["now"] else hidden_ND), head

    policy = fixture.policy(NODE, scorer=fixture.scorer(read_student=rows))
    before = draws(policy, range(CYCLE))
    moved["now"] = True
    still = fixture.policy(NODE, scorer=fixture.scorer(read_student=rows))
    still.load_state_dict(policy.state_dict())
    assert [numbers(drawn) for drawn in draws(still, range(CYCLE))] == [numbers(drawn) for drawn in before]
    stale, fresh = draws(fixture.policy(NODE), [CYCLE])[0], draws(policy, [CYCLE])[0]
    assert ids(stale) == ids(fresh) and numbers(stale) != numbers(fresh)


def test_the_log_has_the_mean_reward_of_the_pool(fixture: PolicyFixture) -> None:
    policy = fixture.policy(NODE)
    assert policy.metrics() == {}
    drawn = [sequence for batch in draws(policy, (0, 1)) for sequence in batch]
    rewards = [np.clip((logp - logq) / 0.5, -100, 100) for logq, logp in (log_probabilities(fixture, s) for s in drawn)]
    assert policy.metrics() == {"rollout_reward": pytest.approx(np.concatenate(rewards).mean(), rel=1e-3)}


# --- processes and resumes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", range(CYCLE + 1))
def test_a_resume_within_a_cycle_is_bitwise_equal(fixture: PolicyFixture, step: int) -> None:
    straight = fixture.policy(NODE)
    draws(straight, range(step))
    state = saved_and_loaded(straight.state_dict())

    def nobody_generates(*args):
        raise AssertionError("the pool was in the checkpoint")

    asleep = (
        {"engine": FakeEngine(nobody_generates), "scorer": fixture.scorer(read_student=nobody_generates)}
        if step % CYCLE
        else {}
    )
    resumed = fixture.policy(NODE, **asleep)
    resumed.load_state_dict(state)
    assert resumed.metrics() == straight.metrics()
    left = range(step, CYCLE if step < CYCLE else 2 * CYCLE)
    assert [numbers(drawn) for drawn in draws(resumed, left)] == [numbers(drawn) for drawn in draws(straight, left)]


@pytest.mark.parametrize("world", [2, 4])
def test_processes_together_draw_and_whiten_the_same_as_one(fixture: PolicyFixture, world: int) -> None:
    steps = (0, 1, 2, CYCLE)
    whole = draws(fixture.policy(NODE), steps)

    def process(rank, gather):
        return draws(fixture.policy(NODE, processes=Processes(rank, world, gather)), steps)

    shares = in_processes(world, process)
    for at in range(len(steps)):
        joined = [sequence for share in shares for sequence in share[at]]
        assert ids(joined) == ids(whole[at])
        for found, wanted in zip(joined, whole[at], strict=True):
            for one, other in zip(astuple(found.rollout), astuple(wanted.rollout), strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
        advantages = np.concatenate([sequence.rollout.advantages for sequence in joined])
        assert abs(advantages.mean()) < 1e-9, "whitened over all processes' mini-batch"


def test_the_state_is_the_same_on_every_process(fixture: PolicyFixture) -> None:
    def process(rank, gather):
        policy = fixture.policy(NODE, processes=Processes(rank, 2, gather))
        policy.draw(0)
        return policy.state_dict()

    first, second = in_processes(2, process)
    assert plain_state(first) == plain_state(second) and len(first["pool"]["sequences"]) == 16


# --- invalid settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Rollouts(num_rollouts=0), "num_rollouts = 0: must be >= 1"),
        (lambda: Rollouts(inner_epochs=0), "inner_epochs = 0: must be >= 1"),
        (lambda: Rollouts(discount=1.5), "discount = 1.5: must lie in [0, 1]"),
        (lambda: Rollouts(discount=float("nan")), "discount = nan"),
        (lambda: Rollouts(reward_scaling=0.0), "reward_scaling = 0.0: must be > 0"),
        (lambda: Rollouts(reward_clip=float("nan")), "reward_clip = nan"),
        (lambda: Rollouts(whiten="all"), "whiten = 'all': must be one of tokens, padded, none"),
    ],
)
def test_values_out_of_range_are_rejected(make, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert said in str(caught.value)
