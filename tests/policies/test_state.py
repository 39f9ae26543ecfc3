"""The state of a policy as tensors and JSON, and states of checkpoints in which it is only JSON."""

import json
import math
from collections.abc import Callable
from dataclasses import astuple
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from redistill.contracts import Rollout, StateValue, TokenSequence
from redistill.errors import ConfigError
from redistill.policies import Adaptive, Buffered, Mixed, Policy, PolicyConfig, Revised, Rollouts, TeacherMixed
from redistill.policies.state import restore, store
from redistill.testing.policies import drawn, plain_state, saved_and_loaded
from tests.policies.fixture import PolicyFixture, make_fixture

STEPS = 4

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()


@st.composite
def sequences(draw: Callable[..., Any]) -> TokenSequence:
    token_ids = draw(st.lists(st.integers(0, 2**31 - 1), min_size=2, max_size=9))
    supervised = [False, *draw(st.lists(st.booleans(), min_size=len(token_ids) - 1, max_size=len(token_ids) - 1))]
    supervised[-1] = True
    origin = draw(st.sampled_from(["student", "revised", "mixture", "replay", "dataset", "teacher"]))
    sample, count = draw(st.integers(0, 2**40)), sum(supervised)
    positive = st.floats(0, allow_infinity=False).filter(lambda weight: weight != 1)
    weights = draw(st.just([]) | st.lists(positive, min_size=count, max_size=count))
    ids, mask = tuple(token_ids), tuple(supervised)
    return TokenSequence(sample=sample, token_ids=ids, supervised=mask, origin=origin, weights=tuple(weights))


several = st.lists(sequences(), min_size=1, max_size=4).map(tuple)
trees = st.recursive(
    leaves | several, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8
)


def fields(value: Any) -> Any:
    """The value, with the fields of each sequence in place of the sequence, which is compared by identity."""
    if isinstance(value, dict):
        return {name: fields(held) for name, held in value.items()}
    if isinstance(value, list | tuple):
        return [fields(held) for held in value]
    return astuple(value) if isinstance(value, TokenSequence) else value


@pytest.fixture(scope="module")
def fixture() -> PolicyFixture:
    return make_fixture()


@given(st.dictionaries(st.text(), trees, max_size=3))
@settings(max_examples=60, deadline=None)
def test_a_state_is_restored_from_tensors_and_json(state: dict[str, StateValue]) -> None:
    assert fields(saved_and_loaded(state)) == fields(state)
    assert "token_ids" not in json.dumps(store(state).values)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_keep_type_and_shape_and_are_copied(dtype: torch.dtype) -> None:
    tensor = torch.tensor([[0, 1], [1, 1]]).to(dtype)
    stored = store({"nested": [1, {"tensor": tensor}], "empty": tensor[:0]})
    found: Any = restore(stored)
    assert torch.equal(found["nested"][1]["tensor"], tensor) and found["nested"][1]["tensor"].dtype == dtype
    assert found["empty"].shape == (0, 2)
    found["nested"][1]["tensor"].zero_()
    assert stored.tensors["0/tensor"].any(), "the tensors of a checkpoint are mapped from its files"


@pytest.mark.parametrize(
    "more",
    [
        {"spans": ((0, 1),)},
        {"rollout": Rollout(old_logprobs=(-1.0,), advantages=(0.5,), importances=(1.0,))},
    ],
)
def test_sequences_whose_values_would_be_lost_are_rejected(more: dict[str, Any]) -> None:
    sequence = TokenSequence(sample=7, token_ids=(1, 2), supervised=(False, True), origin="student", **more)
    with pytest.raises(ConfigError, match="policy: the state has spans or a roll-out in a sequence of training example 7"):
        store({"kept": (sequence,)})


# --- checkpoints whose state is only JSON -------------------------------------------------------------------------------


def json_buffer(state: Any) -> list[dict[str, Any]]:
    """The state of a buffer as commit 3d89816 wrote it."""
    return [
        {
            "step": step,
            "sample": sequence.sample,
            "origin": sequence.origin,
            "token_ids": sequence.token_ids,
            "supervised": [int(is_target) for is_target in sequence.supervised],
        }
        for step, sequence in zip(state["steps"], state["sequences"], strict=True)
    ]


def json_pool(state: Any) -> list[dict[str, Any]]:
    """The state of a pool of roll-outs as commit 3d89816 wrote it."""
    lines, first = [], 0
    for sequence in state["sequences"]:
        last = first + sequence.num_targets
        line = {"sample": sequence.sample, "origin": sequence.origin}
        line |= {"prompt": sequence.prompt_ids, "response": sequence.response_ids}
        lines.append(line | {name: state[name][first:last].tolist() for name in ("old_logprobs", "teacher_logprobs")})
        first = last
    return lines


def as_json(state: Any) -> Any:
    """A policy's state as commit 3d89816 wrote it to state.json."""
    older = dict(state)
    older |= {"buffer": json_buffer(state["buffer"])} if "buffer" in state else {}
    older |= {"pool": json_pool(state["pool"])} if "pool" in state else {}
    return json.loads(json.dumps(older))


@pytest.mark.parametrize("step", [0, 1, 3])
@pytest.mark.parametrize(
    "node",
    [
        Buffered(capacity=12),
        Buffered(source=Mixed(), capacity=9),
        Adaptive(source=Revised(), threshold=0.7, capacity=8),
        Rollouts(source=TeacherMixed(), num_rollouts=16, inner_epochs=2),
    ],
    ids=repr,
)
def test_an_older_state_is_resumed_with_the_same_draws(fixture: PolicyFixture, node: PolicyConfig, step: int) -> None:
    def remaining(policy: Policy) -> list[Any]:
        return [astuple(item.sequence) for draw in drawn(policy, range(step, step + STEPS)) for item in draw.items]

    straight, resumed = fixture.policy(node), fixture.policy(node)
    drawn(straight, range(step))
    resumed.load_state_dict(as_json(straight.state_dict()))
    assert plain_state(resumed.state_dict()) == plain_state(straight.state_dict())
    assert resumed.metrics() == straight.metrics()
    assert remaining(resumed) == remaining(straight)


def test_log_probabilities_are_stored_exactly(fixture: PolicyFixture) -> None:
    policy = fixture.policy(Rollouts(num_rollouts=8, inner_epochs=2))
    policy.draw(0)
    state: Any = policy.state_dict()
    assert state["pool"]["old_logprobs"].dtype == torch.float64
    assert all(math.isfinite(value) for value in state["pool"]["teacher_logprobs"].tolist())
    assert plain_state(saved_and_loaded(state)) == plain_state(state)
