"""Laws of policies.

A law is a property that every policy must have.  If a law is violated, `check_policy` and the functions of `POLICY_LAWS` raise
an AssertionError with the law, the step and the sequences.

If a policy cannot satisfy a law, its class has an attribute `disobeys = {"law": "reason"}` with the name of the law.
`check_policy` skips this law.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import astuple, replace
from threading import BrokenBarrierError

import numpy as np
import torch

from redistill.contracts import Draw, Needs, Processes, Sampling, StateValue, TokenSequence
from redistill.interfaces import Gather
from redistill.policies.policy import Policy
from redistill.policies.source import PolicyNode
from redistill.policies.state import restore, store
from redistill.testing.fixture import RESPONSE_TOKENS, in_processes, make_fixture
from redistill.testing.laws import Findings, check, suite

STEPS = 4


def check_policy(node: PolicyNode) -> None:
    """Check the properties (laws) that every policy must have.

    Laws that the policy excludes in its class attribute `disobeys` are not checked.  The checks use two tiny random models; see
    `redistill.testing.fixture`.

    Args:
        node: Configuration of the policy: a frozen dataclass that implements `PolicyNode`.

    Raises:
        AssertionError: a law is violated; the message names the law, the step and the sequences.

    Example:
        >>> from redistill.policies import Fixed
        >>> check_policy(Fixed())
    """
    check(node, POLICY_LAWS)


def declares_what_it_needs(node: PolicyNode) -> Findings:
    """Check the types of `sampling` (Sampling or None) and `needs` (Needs).

    If `needs.teacher` is False, the policy must work without a teacher and without a scorer.  A scorer computes values for each
    predicted token, such as the KL divergence between student and teacher.
    """
    text = f"sampling is {node.sampling!r}; must be a redistill.contracts.Sampling or None"
    yield isinstance(node.sampling, Sampling | None), text
    yield isinstance(node.needs, Needs), f"needs is {node.needs!r}; must be a redistill.contracts.Needs"
    if not node.needs.teacher:
        drawn(make_fixture().policy(node, teacher=None, scorer=None), range(STEPS))


def draws_are_reproducible(node: PolicyNode) -> Findings:
    """Check that sequences depend only on the seed, the step and the policy's state."""
    first, again = (drawn(make_fixture().policy(node), range(STEPS)) for _ in range(2))
    yield from _same(again, first, "a second policy")


def global_generators_are_not_used(node: PolicyNode) -> Findings:
    """Check that the policy does not use global random number generators.

    Policies use the generators of `redistill.randomness` instead.
    """
    before = _global_states()
    drawn(make_fixture().policy(node), range(STEPS))
    for name, state in _global_states().items():
        yield state == before[name], f"the global generator of {name} was used; use redistill.randomness"


def resumes_where_it_stopped(node: PolicyNode) -> Findings:
    """Check that a restored policy draws the same sequences as an uninterrupted one.

    After half of the steps, the policy's state is saved as in a checkpoint, and loaded into a new policy. After the last step,
    both policies must have the same state.
    """
    uninterrupted, resumed, middle = make_fixture().policy(node), make_fixture().policy(node), STEPS // 2
    drawn(uninterrupted, range(middle))
    resumed.load_state_dict(saved_and_loaded(uninterrupted.state_dict()))
    expected, got = (drawn(policy, range(middle, STEPS)) for policy in (uninterrupted, resumed))
    yield from _same(got, expected, f"resumed at step {middle}", middle)
    states = [plain_state(policy.state_dict()) for policy in (uninterrupted, resumed)]
    yield states[0] == states[1], f"resumed at step {middle}: the state is {states[1]}, that of the first policy {states[0]}"


def states_do_not_change(node: PolicyNode) -> Findings:
    """Check that a policy's saved state does not change later and can be restored.

    The training loop calls `state_dict` before every update, and restores this state if the update is interrupted.
    """
    policy, states, plain, draws = make_fixture().policy(node), list[Mapping[str, StateValue]](), list[object](), list[Draw]()
    for step in range(STEPS):
        states.append(policy.state_dict())
        plain.append(plain_state(states[-1]))
        draws += drawn(policy, [step])
    for step, state in enumerate(states):
        found = plain_state(state)
        yield found == plain[step], f"step {step}: the state was {plain[step]}, and is {found} after later updates"
    for step in reversed(range(STEPS)):
        policy.load_state_dict(states[step])
        yield from _same(drawn(policy, [step]), draws[step : step + 1], "with its state restored, the policy", step)


def answers_in_order(node: PolicyNode) -> Findings:
    """Check that each step gives one sequence per training example, in order.

    A policy may return further sequences after these.  Sequences from the data set must be unchanged.  Generated responses must
    not exceed the length limit of responses.
    """
    fixture = make_fixture()
    prompts = {example.sample: example.prompt_ids for example in fixture.examples}
    for step, draw in enumerate(drawn(fixture.policy(node), range(STEPS))):
        sampled, items = draw.with_role("distillation"), fixture.tools.gold.items(step)
        yield len(sampled) >= len(items), f"step {step}: {len(sampled)} sequences for {len(items)} items"
        for index, sequence in enumerate(sampled):
            where = f"step {step}, sequence {index} ({sequence.origin}, sample {sequence.sample})"
            yield sequence.prompt_ids == prompts.get(sequence.sample), f"{where}: the prompt differs from that of the sample"
            fits = sequence.origin == "dataset" or len(sequence.response_ids) <= RESPONSE_TOKENS
            yield fits, f"{where}: the response has {len(sequence.response_ids)} tokens; must be at most {RESPONSE_TOKENS}"
            if sequence.origin == "dataset":
                same = index < len(items) and _plain(sequence) == _plain(items[index].sequence)
                yield same, f"{where}: differs from the gold sequence of item {index}"


def accepts_an_empty_batch(node: PolicyNode) -> Findings:
    """Check that an empty list of training examples gives no sequences.

    A process may have no training examples in an update.
    """
    source = node.bind(make_fixture().tools)
    for step in range(2):
        count = len(source.sequences(step, []))
        yield count == 0, f"step {step}: {count} sequences for no items"


def draws_do_not_depend_on_the_number_of_processes(node: PolicyNode) -> Findings:
    """Check that two processes together draw the same sequences as one process."""
    whole = drawn(make_fixture().policy(node), range(STEPS))

    def draw_part(rank: int, gather: Gather) -> list[Draw]:
        return drawn(make_fixture().policy(node, Processes(rank, 2, gather)), range(STEPS))

    try:
        parts = in_processes(2, draw_part)
    except BrokenBarrierError:
        yield False, "one of two processes called gather and the other did not"
        return
    for step, one in enumerate(whole):
        answers, additions = list[TokenSequence](), list[TokenSequence]()
        for draws in parts:
            sampled, count = draws[step].with_role("distillation"), len(draws[step].with_role("sft"))  # one gold answer each
            answers += sampled[:count]
            additions += sampled[count:]
        got, expected = [list(map(_plain, sequences)) for sequences in (answers + additions, one.with_role("distillation"))]
        yield got == expected, f"step {step}: two processes drew {got}, one drew {expected}"


POLICY_LAWS = suite(
    declares_what_it_needs,
    draws_are_reproducible,
    global_generators_are_not_used,
    resumes_where_it_stopped,
    states_do_not_change,
    answers_in_order,
    accepts_an_empty_batch,
    draws_do_not_depend_on_the_number_of_processes,
)


def drawn(policy: Policy, steps: Sequence[int]) -> list[Draw]:
    """Return the sequences that the policy draws at the given steps.

    Before every even step, the policy receives a validation loss, to which some policies adapt.  The loss rises with the step.
    """
    draws = []
    for step in steps:
        if step % 2 == 0:
            policy.observe(1.0 + step)
        draws.append(policy.draw(step))
    return draws


def saved_and_loaded(state: Mapping[str, StateValue]) -> Mapping[str, StateValue]:
    """Return the state of a policy after it was saved in a checkpoint and loaded."""
    stored = store(state)
    values, entries = json.loads(json.dumps([stored.values, stored.entries], allow_nan=False))
    return restore(replace(stored, values=values, entries=entries))


def plain_state(state: Mapping[str, StateValue]) -> tuple[str, Mapping[str, object]]:
    """The state of a policy as values that can be compared.

    Returns:
        Two values: the JSON text of all values that are not tensors; and for each tensor, by name, its dtype and values.
    """
    stored = store(state)
    tensors = {name: (str(tensor.dtype), tensor.tolist()) for name, tensor in stored.tensors.items()}
    return json.dumps([stored.values, stored.entries], sort_keys=True), tensors


def _same(got: Sequence[Draw], expected: Sequence[Draw], who: str, first_step: int = 0) -> Findings:
    for step, (one, other) in enumerate(zip(got, expected, strict=True), first_step):
        plain = [list(map(_plain, draw.with_role("distillation"))) for draw in (one, other)]
        yield plain[0] == plain[1], f"step {step}: {who} drew {plain[0]}, the first policy drew {plain[1]}"


def _global_states() -> dict[str, object]:
    return {"random": random.getstate(), "numpy.random": repr(np.random.get_state()), "torch": torch.get_rng_state().tolist()}


def _plain(sequence: TokenSequence) -> tuple[object, ...]:
    """Return a sequence as a tuple, for comparisons.

    The fields `weights` and `rollout` are rounded to 3 decimals, since their rounding errors depend on the batch size.
    """
    columns = (sequence.weights, *(() if sequence.rollout is None else astuple(sequence.rollout)))
    rounded = [tuple(round(value, 3) for value in column) for column in columns]
    return sequence.sample, sequence.origin, sequence.token_ids, sequence.supervised, *rounded
