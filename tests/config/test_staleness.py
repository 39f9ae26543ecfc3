"""Limits of the staleness of text: what each method accepts, and what a recipe can change."""

import pytest

from redistill.config.methods import METHODS
from redistill.config.run import Run
from redistill.config.sections import StudentConfig, TeacherConfig
from redistill.config.staleness import staleness_fault, staleness_limit
from redistill.errors import ConfigError
from redistill.generation.local import LocalEngineConfig
from redistill.generation.vllm import VllmEngineConfig

URL = ("http://127.0.0.1:8000/v1",)


@pytest.mark.parametrize(
    ("method", "limit"), [("imitkd", 15), ("opd", 3), ("gkd", 3), ("distillm", 3), ("mgsr", 3), ("minillm", 3)]
)
def test_forward_kl_accepts_older_text_than_other_objectives(method: str, limit: int) -> None:
    assert staleness_limit(METHODS[method].objective) == limit


@pytest.mark.parametrize(("method", "limit"), [("imitkd", 15), ("opd", 3)])
def test_the_limit_is_the_age_of_the_last_update(method: str, limit: int) -> None:
    for engine in (LocalEngineConfig, lambda **settings: VllmEngineConfig(url=URL, model="m", **settings)):
        assert staleness_fault(METHODS[method], engine(ahead=limit + 1), 8) is None
        fault = staleness_fault(METHODS[method], engine(ahead=limit + 2), 8)
        assert fault is not None and f"up to {limit + 1} updates old; with this objective they may be {limit};" in fault
        allowed = engine(ahead=limit + 2, max_staleness=limit + 1)
        assert staleness_fault(METHODS[method], allowed, 8) is None
    fault = staleness_fault(METHODS[method], VllmEngineConfig(url=URL, model="m", every=64), 8)
    assert fault is not None and fault.startswith("engine.every = 64") and "set engine.max_staleness to 63" in fault


def test_roll_outs_are_as_old_as_the_weights_when_their_pool_is_generated() -> None:
    row = METHODS["minillm"]  # 256 roll-outs for 4 epochs: a pool of 128 updates of 8
    updates = max(1, row.policy.num_rollouts // 8) * row.policy.inner_epochs

    def fault(every: int) -> str | None:
        return staleness_fault(row, VllmEngineConfig(url=URL, model="m", every=every, unsupported="local"), 8)

    assert fault(updates) is None and fault(4) is None
    assert "updates old" in str(fault(updates + updates // 2))


def test_text_that_the_student_does_not_generate_has_no_limit() -> None:
    assert staleness_fault(METHODS["kd"], LocalEngineConfig(ahead=1000), 8) is None


def test_a_recipe_with_text_that_is_too_old_is_rejected() -> None:
    settings = {"name": "n", "method": "opd", "student": StudentConfig(model="s"), "teacher": TeacherConfig(model="t")}
    with pytest.raises(ConfigError, match=r"^engine\.ahead = 8: .* set engine\.max_staleness to 7 \(method opd\)$"):
        Run(**settings, engine=LocalEngineConfig(ahead=8))
    assert Run(**settings, engine=LocalEngineConfig(ahead=8, max_staleness=7)).engine.interval == 8


def test_an_accepted_staleness_of_0_permits_the_current_weights_only() -> None:
    assert staleness_fault(METHODS["imitkd"], LocalEngineConfig(max_staleness=0), 8) is None
    assert staleness_fault(METHODS["imitkd"], LocalEngineConfig(ahead=2, max_staleness=0), 8) is not None
