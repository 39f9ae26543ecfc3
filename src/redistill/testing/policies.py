"""Laws of policies: functions that raise AssertionError with the name of the law, the step and the sequences.

A policy that cannot satisfy a law declares it as a class attribute `disobeys = {"law": "reason"}`; the law is skipped.
"""

import dataclasses
import json
import random
from collections.abc import Callable, Mapping, Sequence
from threading import BrokenBarrierError
from typing import Any

import numpy as np
import torch

from redistill.contracts import Draw, Needs, Processes, Sampling, TokenSequence
from redistill.policies.policy import Policy
from redistill.policies.source import PolicyNode
from redistill.testing.fixture import RESPONSE_TOKENS, in_processes, make_fixture
from redistill.testing.laws import demand, disobeyed, is_its_own_configuration

Law = Callable[[PolicyNode], None]

STEPS = 4


def check_policy(node: PolicyNode) -> None:
    """Check a policy against all laws except those in its `disobeys`.

    The laws use two tiny random models; see `redistill.testing.fixture`.

    Args:
        node: A frozen dataclass with `bind`, `sampling` and `needs`.

    Raises:
        AssertionError: a law is violated; reports the law, the step and the sequences.

    Example:
        >>> from redistill.policies import Fixed
        >>> check_policy(Fixed())
    """
    excused = disobeyed(node, POLICY_LAWS)
    for name, law in POLICY_LAWS.items():
        if name not in excused:
            law(node)


def declares_what_it_needs(node: PolicyNode) -> None:
    """`sampling` is a Sampling or None, and `needs` is a Needs.

    Without `needs.teacher`, the policy works without a teacher and without a scorer.
    """
    sampling, needs = node.sampling, node.needs
    text = f"sampling is {sampling!r}; must be a redistill.contracts.Sampling or None"
    demand(sampling is None or isinstance(sampling, Sampling), node, "declares_what_it_needs", text)
    demand(isinstance(needs, Needs), node, "declares_what_it_needs", f"needs is {needs!r}; must be a redistill.contracts.Needs")
    if not needs.teacher:
        drawn(make_fixture().policy(node, teacher=None, scorer=None), range(STEPS))


def draws_the_same_again(node: PolicyNode) -> None:
    """A draw depends only on the seed, the step and the state."""
    first, again = (drawn(make_fixture().policy(node), range(STEPS)) for _ in range(2))
    _demand_equal(again, first, node, "draws_the_same_again", "a second policy")


def leaves_global_generators_alone(node: PolicyNode) -> None:
    """Global random states are not changed.

    Policies use the keyed generators of `redistill.randomness`.
    """
    before = (random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist())
    drawn(make_fixture().policy(node), range(STEPS))
    after = (random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist())
    for name, one, other in zip(("random", "numpy.random", "torch"), before, after, strict=True):
        demand(
            one == other,
            node,
            "leaves_global_generators_alone",
            f"the global generator of {name} was used; use redistill.randomness",
        )


def resumes_where_it_stopped(node: PolicyNode) -> None:
    """A policy restored from its state gives the same draws as an uninterrupted one.

    The state is serialized as JSON in between.
    """
    uninterrupted, middle = make_fixture().policy(node), STEPS // 2
    drawn(uninterrupted, range(middle))
    state = json.loads(json.dumps(uninterrupted.state_dict()))
    resumed = make_fixture().policy(node)
    resumed.load_state_dict(state)
    expected, got = (drawn(policy, range(middle, STEPS)) for policy in (uninterrupted, resumed))
    _demand_equal(got, expected, node, "resumes_where_it_stopped", f"resumed at step {middle}", middle)


def answers_in_order(node: PolicyNode) -> None:
    """One sequence per item, in order, followed by additional sequences.

    Gold sequences are returned unchanged, and responses have at most RESPONSE_TOKENS tokens.
    """
    fixture, law = make_fixture(), "answers_in_order"
    prompts = {example.sample: example.prompt_ids for example in fixture.examples}
    for step, draw in enumerate(drawn(fixture.policy(node), range(STEPS))):
        sampled, items = draw.with_role("distillation"), fixture.tools.gold.items(step)
        demand(len(sampled) >= len(items), node, law, f"step {step}: {len(sampled)} sequences for {len(items)} items")
        for index, sequence in enumerate(sampled):
            where = f"step {step}, sequence {index} ({sequence.origin}, sample {sequence.sample})"
            own = sequence.prompt_ids == prompts.get(sequence.sample)
            demand(own, node, law, f"{where}: the prompt differs from that of the sample")
            length = len(sequence.response_ids)
            fits = sequence.origin == "dataset" or length <= RESPONSE_TOKENS
            demand(fits, node, law, f"{where}: the response has {length} tokens; must be at most {RESPONSE_TOKENS}")
            if sequence.origin == "dataset":
                same = index < len(items) and _plain(sequence) == _plain(items[index].sequence)
                demand(same, node, law, f"{where}: differs from the gold sequence of item {index}")


def takes_no_items(node: PolicyNode) -> None:
    """An empty list of items gives no sequences.

    A process may have no items at a step.
    """
    fixture = make_fixture()
    source = node.bind(fixture.tools)
    for step in range(2):
        count = len(source.sequences(step, []))
        demand(count == 0, node, "takes_no_items", f"step {step}: {count} sequences for no items")


def processes_draw_together_what_one_draws(node: PolicyNode) -> None:
    """Two processes together give the same sequences per step as a single process."""
    law = "processes_draw_together_what_one_draws"
    whole = drawn(make_fixture().policy(node), range(STEPS))

    def draw_part(rank: int, gather: Callable[[list[Any]], list[Any]]) -> list[Draw]:
        return drawn(make_fixture().policy(node, Processes(rank, 2, gather)), range(STEPS))

    try:
        parts = in_processes(2, draw_part)
    except BrokenBarrierError as error:
        raise AssertionError(
            f"{node!r} violates the law {law}: one of two processes called gather and the other did not"
        ) from error
    for step, one in enumerate(whole):
        drawn_parts = [draws[step].with_role("distillation") for draws in parts]
        counts = [len(draws[step].with_role("sft")) for draws in parts]  # number of items, each of which has a gold answer
        answers = [sequence for part, count in zip(drawn_parts, counts, strict=True) for sequence in part[:count]]
        additions = [sequence for part, count in zip(drawn_parts, counts, strict=True) for sequence in part[count:]]
        got, expected = [list(map(_plain, sequences)) for sequences in (answers + additions, one.with_role("distillation"))]
        demand(got == expected, node, law, f"step {step}: two processes drew {got}, one drew {expected}")


POLICY_LAWS: Mapping[str, Law] = {
    law.__name__: law
    for law in (
        is_its_own_configuration,
        declares_what_it_needs,
        draws_the_same_again,
        leaves_global_generators_alone,
        resumes_where_it_stopped,
        answers_in_order,
        takes_no_items,
        processes_draw_together_what_one_draws,
    )
}


def drawn(policy: Policy, steps: Sequence[int]) -> list[Draw]:
    """Draws of the given steps.

    Before every second step, a rising validation loss is passed to `observe`.
    """
    draws = []
    for step in steps:
        if step % 2 == 0:
            policy.observe(1.0 + step)
        draws.append(policy.draw(step))
    return draws


def _demand_equal(
    got: Sequence[Draw], expected: Sequence[Draw], node: PolicyNode, law: str, who: str, first_step: int = 0
) -> None:
    for step, (one, other) in enumerate(zip(got, expected, strict=True), first_step):
        plain = [list(map(_plain, draw.with_role("distillation"))) for draw in (one, other)]
        demand(plain[0] == plain[1], node, law, f"step {step}: {who} drew {plain[0]}, the first policy drew {plain[1]}")


def _plain(sequence: TokenSequence) -> tuple[Any, ...]:
    """A sequence as a tuple; roll-out values are rounded to 3 decimals, since they depend on the batch."""
    values = (sequence.sample, sequence.origin, sequence.token_ids, sequence.supervised)
    if sequence.rollout is None:
        return values
    columns = dataclasses.astuple(sequence.rollout)
    return *values, *(tuple(round(value, 3) for value in column) for column in columns)
