"""Every policy satisfies the laws of redistill.testing, and a violation names the law."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pytest

from redistill.contracts import Needs, TokenSequence
from redistill.policies import Fixed, GoldItem, PolicyConfig
from redistill.policies.generated import answered
from redistill.policies.source import Stateless
from redistill.testing import POLICY_LAWS, check_policy
from redistill.testing.laws import disobeyed

EXAMPLES = [node for member in get_args(PolicyConfig) for node in member.examples()]


@pytest.mark.parametrize("node", EXAMPLES, ids=repr)
@pytest.mark.parametrize("law", POLICY_LAWS)
def test_law(node, law):
    if law in disobeyed(node, POLICY_LAWS):
        with pytest.raises(AssertionError, match=law):
            POLICY_LAWS[law](node)
    else:
        POLICY_LAWS[law](node)


@dataclass(frozen=True, kw_only=True)
class Wrong:
    """A policy that gives gold answers, except where it violates the law `breaks`."""

    breaks: str

    @property
    def sampling(self) -> Any:
        return "invalid" if self.breaks == "declares_what_it_needs" else None

    @property
    def needs(self) -> Needs:
        return Needs()

    def bind(self, tools):
        return WrongSource(self.breaks, tools)


class WrongSource(Stateless):
    calls_of_all = 0

    def __init__(self, breaks: str, tools: Any) -> None:
        self._breaks, self._tools, self._calls = breaks, tools, 0
        self._steps: list[int] = []

    def state_dict(self) -> dict[str, list[int]]:
        return {"steps": self._steps} if self._breaks == "states_do_not_change" else {}  # not a copy

    def sequences(self, step: int, items: Sequence[GoldItem]) -> list[TokenSequence]:
        WrongSource.calls_of_all += 1
        self._calls += 1
        self._steps.append(step)
        token = {
            "draws_are_reproducible": WrongSource.calls_of_all % 20 + 1,
            "global_generators_are_not_used": int(np.random.randint(1, 5)) if "global" in self._breaks else 1,
            "resumes_where_it_stopped": self._calls,
            "draws_do_not_depend_on_the_number_of_processes": len(items) + 1,
        }.get(self._breaks)
        if self._breaks == "answers_in_order":
            return [item.sequence for item in reversed(items)]
        if self._breaks == "accepts_an_empty_batch":
            return [item.sequence for item in items or self._tools.gold.items(step)]
        if token is None:
            return [item.sequence for item in items]
        return [answered(item.example, (token,), "student") for item in items]


@pytest.mark.parametrize("law", [law for law in POLICY_LAWS if law != "is_a_frozen_dataclass"])
def test_a_violation_names_the_law(law):
    with pytest.raises(AssertionError, match=rf"Wrong\(breaks='{law}'\) violates the law {law}: "):
        POLICY_LAWS[law](Wrong(breaks=law))


def test_a_mutable_policy_is_not_a_configuration():
    class Mutable(Fixed):
        __dataclass_params__ = None

    with pytest.raises(AssertionError, match="violates the law is_a_frozen_dataclass: must be a dataclass with frozen=True"):
        check_policy(Mutable())


def test_a_gather_on_one_process_only_is_detected(monkeypatch):
    monkeypatch.setattr("redistill.testing.fixture.GATHER_TIMEOUT_S", 0.01)

    @dataclass(frozen=True, kw_only=True)
    class GathersAlone(Fixed):
        def bind(self, tools):
            source = Wrong(breaks="nothing").bind(tools)

            def sequences(step, items):
                gold = [item.sequence for item in items]
                return tools.processes.gather(gold) if tools.processes.is_main else gold

            source.sequences = sequences
            return source

    with pytest.raises(AssertionError, match="one of two processes called gather and the other did not"):
        POLICY_LAWS["draws_do_not_depend_on_the_number_of_processes"](GathersAlone())
