"""Means, standard deviations and differences of synthetic runs, checked with NumPy and SciPy."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from redistill.reports.comparison import Entrant, Row, columns, comparison_rows, entrants
from redistill.reports.inference import crossed
from redistill.reports.lineup import Lineup, read_lineup
from tests.reports.fabricated import write_method, write_sweep

DATASETS = ("dolly", "vicuna")


def scores(*seed: int, gain: float = 0.0, prompts: int = 10, datasets=DATASETS) -> dict:
    rng = np.random.default_rng(seed)
    return {name: {k: 30 + gain + rng.normal(0, 5, prompts) for k in (10, 20)} for name in datasets}


def rows_of(lineup: Lineup) -> tuple[list[Entrant], dict[tuple[str, str], Row]]:
    models = entrants(lineup)
    baseline = [model for model in models if model.role == "baseline"]
    return models, {(row.model, row.column): row for row in comparison_rows(models, columns(models), baseline)}


@pytest.fixture
def table(tmp_path: Path) -> tuple[dict[tuple[str, int], dict], dict[tuple[str, str], Row]]:
    """Two methods, three training seeds each, two data sets of equal size: the written scores and the rows."""
    written = {(m, s): scores(n, s, gain=2.0 * n) for n, m in enumerate(("sft", "mgsr")) for s in (1, 2, 3)}
    folders = [write_method(tmp_path / f"{m}{s}", found, m, s) for (m, s), found in written.items()]
    return written, rows_of(read_lineup(folders))[1]


def test_with_several_training_seeds_the_deviation_is_over_training_seeds(table):
    written, rows = table
    by_training = [np.mean(list(written["mgsr", s]["dolly"].values())) for s in (1, 2, 3)]
    found = rows["mgsr", "dolly"].primary
    assert (found.mean, found.deviation) == pytest.approx((np.mean(by_training), np.std(by_training, ddof=1)))
    assert (found.over, found.num_trainings, found.num_seeds) == ("training seeds", 3, 2)


def test_with_one_training_seed_the_deviation_is_over_evaluation_seeds(tmp_path):
    written = scores(7)
    _, rows = rows_of(read_lineup([write_method(tmp_path / "a", written, "mgsr")]))
    by_seed = [np.mean([written[name][seed] for name in DATASETS]) for seed in (10, 20)]
    found = rows["mgsr", "average"].primary
    assert (found.mean, found.deviation) == pytest.approx((np.mean(by_seed), np.std(by_seed, ddof=1)))
    assert (found.over, found.num_trainings) == ("evaluation seeds", 1)


def test_the_average_weights_data_sets_equally_and_requires_all_of_them(tmp_path):
    big, small = scores(1, prompts=30, datasets=["dolly"]), scores(2, gain=20, prompts=5, datasets=["vicuna"])
    both = write_method(tmp_path / "a", big | small, "mgsr")
    half = write_method(tmp_path / "b", big, "sft")
    _, rows = rows_of(read_lineup([both, half], "mgsr"))
    expected = (np.mean(list(big["dolly"].values())) + np.mean(list(small["vicuna"].values()))) / 2
    assert rows["mgsr", "average"].primary.mean == pytest.approx(expected)
    assert ("sft", "dolly") in rows and ("sft", "vicuna") not in rows and ("sft", "average") not in rows


def test_differences_are_paired_by_prompt_and_training_seed_and_agree_with_scipy(table):
    written, rows = table

    def matrix(dataset):
        return np.array([np.mean(list(written["mgsr", s][dataset].values()), axis=0) for s in (1, 2, 3)]) - np.array(
            [np.mean(list(written["sft", s][dataset].values()), axis=0) for s in (1, 2, 3)]
        )

    found = rows["mgsr", "dolly"].contrast
    of_prompts = matrix("dolly").mean(axis=0)
    assert found.interval.difference == pytest.approx(of_prompts.mean()) and found.num_seeds == 3
    assert found.about == "methods" and found.p == pytest.approx(crossed([matrix("dolly")])[1])
    assert (found.wins, found.losses) == ((of_prompts > 0).sum(), (of_prompts < 0).sum())
    average = rows["mgsr", "average"].contrast
    assert average.interval.difference == pytest.approx((matrix("dolly").mean() + matrix("vicuna").mean()) / 2)
    assert average.wins + average.ties + average.losses == 20
    assert rows["sft", "dolly"].contrast is None and rows["sft", "dolly"].versus is None


def test_with_one_training_seed_the_interval_agrees_with_scipy(tmp_path):
    a, b = scores(1, gain=3, prompts=50, datasets=["dolly"]), scores(2, prompts=50, datasets=["dolly"])
    _, rows = rows_of(read_lineup([write_method(tmp_path / "b", b, "sft"), write_method(tmp_path / "a", a, "mgsr")]))
    difference = np.mean(list(a["dolly"].values()), axis=0) - np.mean(list(b["dolly"].values()), axis=0)
    theirs = stats.bootstrap((difference,), np.mean, n_resamples=20_000, method="percentile", rng=0)
    found = rows["mgsr", "dolly"].interval
    # With 2,000 resamples the standard error of a 2.5 % quantile is 0.06 standard errors of the mean; allow 4 of these.
    slack = 4 * 0.06 * theirs.standard_error
    assert found.lower == pytest.approx(theirs.confidence_interval.low, abs=slack)
    assert found.upper == pytest.approx(theirs.confidence_interval.high, abs=slack)


def test_with_one_training_seed_p_is_that_of_scipys_permutation_test(tmp_path):
    a, b = scores(1, gain=3, prompts=9, datasets=["dolly"]), scores(2, prompts=9, datasets=["dolly"])
    _, rows = rows_of(read_lineup([write_method(tmp_path / "b", b, "sft"), write_method(tmp_path / "a", a, "mgsr")]))
    difference = np.mean(list(a["dolly"].values()), axis=0) - np.mean(list(b["dolly"].values()), axis=0)
    theirs = stats.permutation_test((difference,), np.mean, permutation_type="samples", n_resamples=np.inf)
    found = rows["mgsr", "dolly"].contrast
    assert found.about == "students" and found.p == pytest.approx(theirs.pvalue)


def test_without_shared_training_seeds_all_seeds_are_averaged_and_none_are_paired(tmp_path):
    written = {seed: scores(seed, datasets=["dolly"]) for seed in (1, 2, 3, 4)}
    folders = [write_method(tmp_path / str(s), found, "sft" if s < 3 else "mgsr", s) for s, found in written.items()]
    _, rows = rows_of(read_lineup(folders))
    means = {seed: np.mean(list(found["dolly"].values())) for seed, found in written.items()}
    found = rows["mgsr", "dolly"].contrast
    assert found.num_seeds == 0
    assert found.interval.difference == pytest.approx((means[3] + means[4] - means[1] - means[2]) / 2)


def test_holm_corrects_over_methods_without_teacher_and_untrained_student(tmp_path):
    sweep = write_sweep(tmp_path, {"sft": 0.0, "kd": 0.4, "mgsr": 0.5}, prompts=12)
    _, rows = rows_of(read_lineup([sweep]))
    kd, mgsr = (rows[name, "dolly"].contrast for name in ("kd", "mgsr"))
    low, high = sorted([kd.p, mgsr.p])
    assert min(kd.p_holm, mgsr.p_holm) == pytest.approx(min(1, 2 * low))
    assert max(kd.p_holm, mgsr.p_holm) == pytest.approx(max(min(1, 2 * low), high))
    assert rows["teacher", "dolly"].contrast.p_holm is None


def test_different_prompts_with_the_same_ids_are_not_paired(tmp_path):
    ours = write_method(tmp_path / "a", scores(1), "sft")
    theirs = write_method(tmp_path / "b", scores(2), "mgsr", text="different")
    _, rows = rows_of(read_lineup([ours, theirs]))
    assert rows["mgsr", "dolly"].contrast is None and rows["mgsr", "dolly"].note == "different prompts"
    assert rows["mgsr", "average"].note == "different prompts"


def test_a_shared_teacher_has_one_row_and_different_teachers_have_one_each(tmp_path):
    folders = [write_method(tmp_path / m, scores(1), m) for m in ("sft", "kd", "mgsr")]
    assert [model.label for model in entrants(read_lineup(folders)) if not model.is_method] == ["teacher", "before training"]
    scores_file = folders[2] / "teacher" / "scores.json"
    scores_file.write_text(scores_file.read_text().replace("7eac", "aaaa"))
    labels = [model.label for model in entrants(read_lineup(folders)) if model.role == "teacher"]
    assert labels == ["teacher (sft, kd)", "teacher (mgsr)"]


def test_a_model_shared_by_training_seeds_counts_as_one_training(tmp_path):
    models, rows = rows_of(read_lineup([write_sweep(tmp_path, {"sft": 0.0}, prompts=5)]))
    trainings = {model.role: len(model.trainings) for model in models}
    assert trainings == {
        "teacher": 1,
        "before": 3,
        "baseline": 3,
    }  # one teacher; a student initialized separately for each seed
    assert rows["teacher", "dolly"].primary.deviation is None
