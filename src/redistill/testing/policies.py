"""The laws of a policy, each a function that raises AssertionError with the law, the step and the sequences.

A policy that cannot obey a law says so in a class attribute, `disobeys = {"law": "reason"}`, and is not held to it.
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
from redistill.testing.laws import demand, disobeyed, is_its_own_configuration
from redistill.testing.stage import RESPONSE_TOKENS, in_processes, make_stage

Law = Callable[[PolicyNode], None]

STEPS = 4


def check_policy(node: PolicyNode) -> None:
    """Hold a policy against every law that it does not declare to disobey, on a stage of two tiny random models.

    Args:
        node: A frozen dataclass with `bind`, `sampling` and `needs`.

    Raises:
        AssertionError: which law is broken, at which step, with which sequences.

    Example:
        >>> from redistill.policies import Fixed
        >>> check_policy(Fixed())
    """
    excused = disobeyed(node, POLICY_LAWS)
    for name, law in POLICY_LAWS.items():
        if name not in excused:
            law(node)


def declares_what_it_needs(node: PolicyNode) -> None:
    """`sampling` says how the student's text is sampled, or None; `needs` what it requires of teacher and engine."""
    sampling, needs = node.sampling, node.needs
    text = f"sampling is {sampling!r}; must be a redistill.contracts.Sampling or None"
    demand(sampling is None or isinstance(sampling, Sampling), node, "declares_what_it_needs", text)
    demand(isinstance(needs, Needs), node, "declares_what_it_needs", f"needs is {needs!r}; must be a redistill.contracts.Needs")
    if not needs.teacher:
        drawn(make_stage().policy(node, teacher=None, scorer=None), range(STEPS))


def draws_the_same_again(node: PolicyNode) -> None:
    """A draw depends on the seed, the step and the state, and on nothing else."""
    first, again = (drawn(make_stage().policy(node), range(STEPS)) for _ in range(2))
    _demand_equal(again, first, node, "draws_the_same_again", "a second policy")


def leaves_global_generators_alone(node: PolicyNode) -> None:
    """Its randomness comes from redistill.randomness, keyed by place; it neither reads nor moves a global generator."""
    before = (random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist())
    drawn(make_stage().policy(node), range(STEPS))
    after = (random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist())
    for name, one, other in zip(("random", "numpy.random", "torch"), before, after, strict=True):
        demand(one == other, node, "leaves_global_generators_alone", f"it drew from the generator of {name}")


def resumes_where_it_stopped(node: PolicyNode) -> None:
    """Its state goes through JSON, and a policy that is given it draws what the unbroken one draws."""
    unbroken, middle = make_stage().policy(node), STEPS // 2
    drawn(unbroken, range(middle))
    state = json.loads(json.dumps(unbroken.state_dict()))
    resumed = make_stage().policy(node)
    resumed.load_state_dict(state)
    wanted, got = (drawn(policy, range(middle, STEPS)) for policy in (unbroken, resumed))
    _demand_equal(got, wanted, node, "resumes_where_it_stopped", f"resumed at step {middle}", middle)


def answers_in_order(node: PolicyNode) -> None:
    """One sequence for each item, in order, and what it adds behind them; gold answers are handed through as they are."""
    stage, law = make_stage(), "answers_in_order"
    prompts = {example.sample: example.prompt_ids for example in stage.examples}
    for step, draw in enumerate(drawn(stage.policy(node), range(STEPS))):
        sampled, items = draw.with_role("distillation"), stage.tools.gold.items(step)
        demand(len(sampled) >= len(items), node, law, f"step {step}: {len(sampled)} sequences for {len(items)} items")
        for place, sequence in enumerate(sampled):
            where = f"step {step}, sequence {place} ({sequence.origin}, sample {sequence.sample})"
            own = sequence.prompt_ids == prompts.get(sequence.sample)
            demand(own, node, law, f"{where}: its prompt is not that of its sample")
            length = len(sequence.response_ids)
            fits = sequence.origin == "dataset" or length <= RESPONSE_TOKENS
            demand(fits, node, law, f"{where}: {length} tokens of response; at most {RESPONSE_TOKENS} are allowed")
            if sequence.origin == "dataset":
                same = place < len(items) and _plain(sequence) == _plain(items[place].sequence)
                demand(same, node, law, f"{where}: is not the gold sequence of item {place}")


def takes_no_items(node: PolicyNode) -> None:
    """Every process asks at every step, some for no items; they get no sequences."""
    stage = make_stage()
    source = node.bind(stage.tools)
    for step in range(2):
        count = len(source.sequences(step, []))
        demand(count == 0, node, "takes_no_items", f"step {step}: {count} sequences for no items")


def processes_draw_together_what_one_draws(node: PolicyNode) -> None:
    """Spread over two processes, the items of a step get the answers that a single process gives them."""
    law = "processes_draw_together_what_one_draws"
    whole = drawn(make_stage().policy(node), range(STEPS))

    def share(rank: int, gather: Callable[[list[Any]], list[Any]]) -> list[Draw]:
        return drawn(make_stage().policy(node, Processes(rank, 2, gather)), range(STEPS))

    try:
        parts = in_processes(2, share)
    except BrokenBarrierError as error:
        raise AssertionError(f"{node!r} breaks the law {law}: one of two processes gathered where the other did not") from error
    for step, one in enumerate(whole):
        shares = [draws[step].with_role("distillation") for draws in parts]
        counts = [len(draws[step].with_role("sft")) for draws in parts]  # of the items, each of which has a gold answer
        answers = [sequence for share, count in zip(shares, counts, strict=True) for sequence in share[:count]]
        additions = [sequence for share, count in zip(shares, counts, strict=True) for sequence in share[count:]]
        got, wanted = [list(map(_plain, sequences)) for sequences in (answers + additions, one.with_role("distillation"))]
        demand(got == wanted, node, law, f"step {step}: two processes drew {got}, one drew {wanted}")


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
    """The draws of these steps, with validation losses that rise, told before every second of them."""
    draws = []
    for step in steps:
        if step % 2 == 0:
            policy.observe(1.0 + step)
        draws.append(policy.draw(step))
    return draws


def _demand_equal(
    got: Sequence[Draw], wanted: Sequence[Draw], node: PolicyNode, law: str, who: str, first_step: int = 0
) -> None:
    for step, (one, other) in enumerate(zip(got, wanted, strict=True), first_step):
        plain = [list(map(_plain, draw.with_role("distillation"))) for draw in (one, other)]
        demand(plain[0] == plain[1], node, law, f"step {step}: {who} drew {plain[0]}, the first {plain[1]}")


def _plain(sequence: TokenSequence) -> tuple[Any, ...]:
    """A sequence as plain values; numbers of a roll-out to 3 decimals, since batches change the last ones."""
    values = (sequence.sample, sequence.origin, sequence.token_ids, sequence.supervised)
    if sequence.rollout is None:
        return values
    columns = dataclasses.astuple(sequence.rollout)
    return *values, *(tuple(round(value, 3) for value in column) for column in columns)
