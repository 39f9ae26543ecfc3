"""The guards: what is not finite never becomes an update, and training stops when it no longer pays."""

import json
import math

import pytest

from redistill.errors import ConfigError, TrainingError
from redistill.guards import EarlyStopping, FiniteGuard

BAD = [(math.nan, 1.0), (math.inf, 1.0), (-math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)]


@pytest.mark.parametrize(("loss", "grad_norm"), BAD)
def test_an_update_that_is_not_finite_is_not_made(loss: float, grad_norm: float) -> None:
    guard = FiniteGuard(max_skips=1)
    assert guard.check(1e30, 0.0, step=0, samples=[1])
    assert not guard.check(loss, grad_norm, step=1, samples=[1])
    assert guard.skips == 1


def test_skips_count_in_a_row_and_a_good_update_forgives_them() -> None:
    guard = FiniteGuard(max_skips=2)
    for step, loss in enumerate([math.nan, math.nan, 1.0] * 3):
        assert guard.check(loss, 1.0, step=step, samples=[0]) == math.isfinite(loss)
    assert guard.skips == 6


def test_beyond_the_allowed_skips_training_ends_and_says_where() -> None:
    guard = FiniteGuard(max_skips=2)
    for step in (40, 41):
        guard.check(math.nan, 1.0, step=step, samples=[5])
    with pytest.raises(TrainingError, match=r"step 42: loss nan and gradient norm 2\.5.* 3 times in a row.*samples 12, 57;"):
        guard.check(math.nan, 2.5, step=42, samples=[12, 57])
    with pytest.raises(TrainingError, match="0, 1, 2, 3, 4, 5, 6, 7 and 92 more"):
        FiniteGuard(max_skips=0).check(math.inf, 1.0, step=0, samples=range(100))


@pytest.mark.parametrize("interrupted_at", range(6))
def test_a_resumed_guard_decides_like_one_that_was_not_interrupted(interrupted_at: int) -> None:
    losses = [math.nan, 1.0, math.nan, math.nan, math.nan, math.nan]
    guard = FiniteGuard(max_skips=3)
    decisions: list[bool] = []
    with pytest.raises(TrainingError, match="step 5"):
        for step, loss in enumerate(losses):
            if step == interrupted_at:
                state = json.loads(json.dumps(guard.state_dict()))
                guard = FiniteGuard(max_skips=3)
                guard.load_state_dict(state)
            decisions.append(guard.check(loss, 1.0, step=step, samples=[0]))
    assert decisions == [False, True, False, False, False]


def test_stops_after_patience_validations_without_a_higher_score() -> None:
    early_stopping = EarlyStopping(patience=2)
    assert [early_stopping.stop(score) for score in (3.0, 2.0, 4.0, 4.0, 3.9)] == [False, False, False, False, True]
    assert early_stopping.best == 4.0


def test_without_patience_it_never_stops() -> None:
    early_stopping = EarlyStopping(patience=None)
    assert not any(early_stopping.stop(-score) for score in range(50))


def test_a_score_that_is_not_a_number_is_no_gain() -> None:
    early_stopping = EarlyStopping(patience=2)
    assert [early_stopping.stop(score) for score in (math.nan, 1.0, math.nan, math.inf)] == [False, False, False, True]
    assert early_stopping.best == 1.0


@pytest.mark.parametrize("interrupted_at", range(5))
def test_a_resumed_early_stopping_stops_at_the_same_validation(interrupted_at: int) -> None:
    early_stopping = EarlyStopping(patience=3)
    decisions = []
    for number, score in enumerate([1.0, 2.0, 1.5, 1.0, 2.0]):
        if number == interrupted_at:
            state = json.loads(json.dumps(early_stopping.state_dict()))
            early_stopping = EarlyStopping(patience=3)
            early_stopping.load_state_dict(state)
        decisions.append(early_stopping.stop(score))
    assert decisions == [False, False, False, False, True]


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="max_skips = -1"):
        FiniteGuard(max_skips=-1)
    with pytest.raises(ConfigError, match="patience = 0"):
        EarlyStopping(patience=0)
