"""The guards: non-finite updates are skipped, a collapse of text is reported, and training stops without improvement."""

import json
import math
from dataclasses import replace

import pytest

from redistill.contracts import TokenSequence
from redistill.errors import ConfigError, TrainingError
from redistill.storage import files
from redistill.training.guards import CollapseMonitor, EarlyStopping, GuardConfig, Update, UpdateGuard
from redistill.training.guards.collapse import TextFacts, facts_of, text_metrics

FINE = Update(step=1, metrics={"loss": 2.5}, norms={"grad_norm": 1.0}, teacher_rows=0, samples=[7], read=list)
BAD = [
    *(replace(FINE, metrics={"loss": loss}) for loss in (math.nan, math.inf, -math.inf)),
    *(replace(FINE, norms={"grad_norm": norm}) for norm in (math.nan, math.inf)),
    replace(FINE, norms={"grad_norm": 1.0, "clip_network_grad_norm": math.nan}),
    replace(FINE, teacher_rows=1),
]


def update(step, loss, **changes):
    return replace(FINE, step=step, metrics={"loss": loss}, **changes)


def again(made, state):
    """A new guard with the state that a checkpoint stores."""
    made.load_state_dict(json.loads(json.dumps(state)))
    return made


# --- updates ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", BAD)
def test_an_update_that_is_not_finite_is_skipped(tmp_path, bad):
    reported = []
    guard = UpdateGuard(GuardConfig(max_skips=1), folder=tmp_path, report_event=reported.append)
    assert [guard.allows(each) for each in (FINE, bad, FINE)] == [True, False, True]
    assert [event.name for event in reported] == ["not_finite"]
    json.dumps(reported[0].line(), allow_nan=False)
    assert not list(tmp_path.iterdir())


def test_a_finite_update_resets_the_count_of_skips(tmp_path):
    guard = UpdateGuard(GuardConfig(max_skips=2), folder=tmp_path)
    for step, loss in enumerate([math.nan, math.nan, 1.0] * 3):
        assert guard.allows(update(step, loss)) == math.isfinite(loss)
    assert guard.state_dict()["skips"] == 6


def test_more_than_max_skips_end_training_with_the_step(tmp_path):
    guard = UpdateGuard(GuardConfig(max_skips=2), folder=tmp_path)
    for step in (40, 41):
        guard.allows(update(step, math.nan))
    message = r"step 42: loss nan and gradient norm 1\.0, not finite; 3 updates in a row.*samples 12, 57;.*guard-step-42\.json"
    with pytest.raises(TrainingError, match=message) as caught:
        guard.allows(update(42, math.nan, samples=[57, 12]))
    assert caught.value.exit_code == 1
    with pytest.raises(TrainingError, match="0, 1, 2, 3, 4, 5, 6, 7 and 92 more"):
        UpdateGuard(GuardConfig(max_skips=0), folder=tmp_path).allows(update(1, math.inf, samples=range(100)))


def test_the_guard_file_has_the_rows_of_all_processes(tmp_path):
    readings = [{"samples": [5], "student": {"not_finite": 3}}]
    guard = UpdateGuard(
        GuardConfig(max_skips=0), folder=tmp_path, gather=lambda values: [*values, *values], record=lambda s: f"train.jsonl:{s}"
    )
    bad = Update(
        step=9,
        metrics={"loss": math.nan, "sft": 2.0, "divergence": math.nan},
        norms={"grad_norm": math.inf},
        teacher_rows=4,
        samples=[5],
        read=lambda: readings,
    )
    with pytest.raises(TrainingError, match="step 9: the teacher's logits are not finite in 4 rows"):
        guard.allows(bad)
    described = files.read_json(tmp_path / "guard-step-9.json")
    assert (described["loss"], described["sft"], described["divergence"], described["grad_norm"]) == (None, 2.0, None, None)
    assert described["samples"] == [5] and described["records"] == {"5": "train.jsonl:5"}
    assert described["micro_batches"] == readings * 2 and described["teacher_rows_not_finite"] == 4


@pytest.mark.parametrize("interrupted_at", range(6))
def test_a_resumed_guard_decides_like_an_uninterrupted_one(tmp_path, interrupted_at):
    losses = [math.nan, 1.0, math.nan, math.nan, math.nan, math.nan]
    guard = UpdateGuard(GuardConfig(max_skips=3), folder=tmp_path)
    decisions = []
    with pytest.raises(TrainingError, match="step 5"):
        for step, loss in enumerate(losses):
            if step == interrupted_at:
                guard = again(UpdateGuard(GuardConfig(max_skips=3), folder=tmp_path), guard.state_dict())
            decisions.append(guard.allows(update(step, loss)))
    assert decisions == [False, True, False, False, False]


def test_a_loss_spike_is_reported_and_applied_or_skipped_as_configured(tmp_path):
    for on_spike, made in (("warn", True), ("skip", False)):
        reported = []
        guard = UpdateGuard(GuardConfig(on_spike=on_spike), folder=tmp_path, report_event=reported.append)
        for step in range(12):
            assert guard.allows(update(step, 2.0 + 0.1 * (step % 3)))
        assert guard.allows(update(13, 210.0, samples=[3, 4])) is made
        (event,) = reported
        assert (event.name, event.step, event.facts["samples"]) == ("loss_spike", 13, [3, 4])
        assert event.facts["times_median"] == pytest.approx(100, rel=0.01)
        assert guard.allows(update(14, 2.0)), "the spike has not raised the bar, nor lowered it"


def test_skipped_spikes_count_towards_max_skips(tmp_path):
    guard = UpdateGuard(GuardConfig(on_spike="skip", max_skips=1), folder=tmp_path)
    for step in range(12):
        guard.allows(update(step, 2.0))
    assert not guard.allows(update(12, 300.0))
    with pytest.raises(TrainingError, match="step 13: loss 300 is 150 times the median of recent losses; 2 updates in a row"):
        guard.allows(update(13, 300.0))


# --- collapse -----------------------------------------------------------------------------------------------------------

HEALTHY = TextFacts(origin="student", length=40, ended=True, distinct=0.9)
GOLD = [TextFacts(origin="dataset", length=50, ended=True, distinct=0.95)]
KEPT = {"kept_mass": 0.9, "recovered": 0.8}
COLLAPSED = {
    "length": (replace(HEALTHY, length=2), KEPT),
    "ended": (replace(HEALTHY, length=200, ended=False), KEPT),
    "distinct_2": (replace(HEALTHY, distinct=0.1), KEPT),
    "recovered": (HEALTHY, {"kept_mass": 0.9, "recovered": 0.05}),
    "kept_mass": (HEALTHY, {"kept_mass": 0.2}),
}


def test_healthy_text_raises_no_alarm():
    reported = []
    monitor = CollapseMonitor(GuardConfig(collapse_window=4), reported.append)
    for step in range(40):
        text = replace(HEALTHY, length=20 + 10 * (step % 5), ended=step % 3 > 0, distinct=0.7 + 0.05 * (step % 5))
        monitor.observe(step, [text, *GOLD], GOLD, KEPT)
    assert reported == []


@pytest.mark.parametrize("sign", list(COLLAPSED))
def test_each_sign_of_collapse_is_reported_once_until_it_recovers(sign):
    reported = []
    monitor = CollapseMonitor(GuardConfig(collapse_window=4), reported.append)
    text, kept = COLLAPSED[sign]
    for step in range(60):
        is_bad = 10 <= step < 30 or step >= 40
        monitor.observe(step, [text if is_bad else HEALTHY], GOLD, kept if is_bad else KEPT)
    assert [event.facts["sign"] for event in reported] == [sign, sign]
    assert all(10 <= first.step < 14 and 40 <= second.step < 44 for first, second in [reported])
    assert all(event.facts["value"] < event.facts["least"] for event in reported)


def test_a_student_that_never_ended_its_texts_raises_no_alarm():
    reported = []
    monitor = CollapseMonitor(GuardConfig(collapse_window=2), reported.append)
    for step in range(9):
        monitor.observe(step, [replace(HEALTHY, ended=False)], GOLD, {})
    assert reported == []


def test_text_of_other_origins_is_ignored():
    monitor = CollapseMonitor(GuardConfig(collapse_window=1), pytest.fail)
    for origin in ("dataset", "teacher", "replay"):
        monitor.observe(1, [replace(COLLAPSED["distinct_2"][0], origin=origin)], GOLD, {})
        assert text_metrics([replace(HEALTHY, origin=origin)]) == {}


@pytest.mark.parametrize("origin", ["dataset", "teacher", "replay"])
@pytest.mark.parametrize("sign", ["recovered", "kept_mass"])
def test_a_collapse_of_dac_kl_is_reported_whatever_text_the_student_is_trained_on(sign, origin):
    """DAC-KL collapses on fixed data as well, where the student generates no text."""
    reported = []
    monitor = CollapseMonitor(GuardConfig(collapse_window=4), reported.append)
    for step in range(20):
        monitor.observe(step, [replace(HEALTHY, origin=origin)], GOLD, COLLAPSED[sign][1] if step >= 10 else KEPT)
    (event,) = reported
    assert event.facts["sign"] == sign and 10 <= event.step < 14
    assert event.text.startswith(f"step {event.step}: DAC-KL may have collapsed: ")


def test_updates_without_generated_text_do_not_delay_the_check_of_dac_kl():
    reported = []
    monitor = CollapseMonitor(GuardConfig(collapse_window=4), reported.append)
    for step in range(1, 9):
        monitor.observe(step, [HEALTHY] if step % 4 == 0 else GOLD, GOLD, {"recovered": 0.05})
    assert [(event.step, event.facts["sign"]) for event in reported] == [(4, "recovered")]


def test_a_checkpoint_of_an_earlier_version_restores_both_windows():
    reported = []
    monitor = CollapseMonitor(GuardConfig(collapse_window=2), reported.append)
    line = {"length": 40.0, "ended": 1.0, "distinct_2": 0.9, "gold_length": 50.0, "gold_distinct_2": 0.95}
    monitor.load_state_dict({"window": [{**line, "recovered": 0.05}], "best_ended": 1.0, "alarms": []})
    monitor.observe(2, [HEALTHY], GOLD, {"recovered": 0.05})
    assert [(event.step, event.facts["sign"]) for event in reported] == [(2, "recovered")]


def test_a_collapse_can_end_the_run():
    monitor = CollapseMonitor(GuardConfig(collapse_window=2, on_collapse="stop"), lambda event: None)
    monitor.observe(1, [HEALTHY], GOLD, {"recovered": 0.05})
    with pytest.raises(TrainingError, match=r"step 2: .*mass outside the arg max is 0\.05 over 2 updates, below 0\.1"):
        monitor.observe(2, [HEALTHY], GOLD, {"recovered": 0.05})


def test_a_threshold_of_zero_disables_the_check():
    config = GuardConfig(collapse_window=1, min_length=0, min_ended=0, min_distinct=0, min_kept_mass=0, min_recovered=0)
    monitor = CollapseMonitor(config, pytest.fail)
    for step, (text, kept) in enumerate(COLLAPSED.values()):
        monitor.observe(step, [text], GOLD, kept)


@pytest.mark.parametrize("interrupted_at", range(1, 12))
def test_a_resumed_monitor_reports_the_same(interrupted_at):
    reported = []
    config = GuardConfig(collapse_window=3)
    monitor = CollapseMonitor(config, reported.append)
    for step in range(12):
        if step == interrupted_at:
            monitor = again(CollapseMonitor(config, reported.append), monitor.state_dict())
        monitor.observe(step, [COLLAPSED["ended"][0] if step > 5 else HEALTHY], GOLD, KEPT)
    assert [(event.step, event.facts["sign"]) for event in reported] == [(7, "ended")]


def test_facts_are_of_the_response_only():
    sequence = TokenSequence(
        sample=1, token_ids=(5, 5, 5, 8, 9, 8, 9, 0), supervised=(False,) * 3 + (True,) * 5, origin="student"
    )
    assert facts_of([sequence], end_ids=(0,)) == [TextFacts(origin="student", length=5, ended=True, distinct=0.75)]
    assert not facts_of([sequence], end_ids=(7,))[0].ended
    assert text_metrics([HEALTHY, replace(HEALTHY, ended=False, distinct=0.5)]) == {"ended": 0.5, "distinct_2": 0.7}


# --- stopping -----------------------------------------------------------------------------------------------------------


def test_stops_after_patience_validations_without_a_higher_score() -> None:
    early_stopping = EarlyStopping(patience=2)
    assert [early_stopping.stop(score) for score in (3.0, 2.0, 4.0, 4.0, 3.9)] == [False, False, False, False, True]
    assert early_stopping.best == 4.0


def test_without_patience_it_never_stops() -> None:
    early_stopping = EarlyStopping(patience=None)
    assert not any(early_stopping.stop(-score) for score in range(50))


def test_a_score_that_is_not_a_number_is_no_improvement() -> None:
    early_stopping = EarlyStopping(patience=2)
    assert [early_stopping.stop(score) for score in (math.nan, 1.0, math.nan, math.inf)] == [False, False, False, True]
    assert early_stopping.best == 1.0


@pytest.mark.parametrize("interrupted_at", range(5))
def test_a_resumed_early_stopping_stops_at_the_same_validation(interrupted_at: int) -> None:
    early_stopping = EarlyStopping(patience=3)
    decisions = []
    for number, score in enumerate([1.0, 2.0, 1.5, 1.0, 2.0]):
        if number == interrupted_at:
            early_stopping = again(EarlyStopping(patience=3), early_stopping.state_dict())
        decisions.append(early_stopping.stop(score))
    assert decisions == [False, False, False, False, True]


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_skips", -1), ("collapse_window", 0), ("spike_factor", 1.0), ("spike_factor", math.inf), ("min_distinct", 1.5)],
)
def test_settings_out_of_range_are_rejected(field, value):
    with pytest.raises(ConfigError, match=f"{field} = {value}: must"):
        GuardConfig(**{field: value})
    with pytest.raises(ConfigError, match="patience = 0"):
        EarlyStopping(patience=0)
