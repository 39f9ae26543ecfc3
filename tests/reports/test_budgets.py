"""Budgets, settings and costs of compared runs."""

import json
from pathlib import Path

import pytest

from redistill.reports.budgets import Budgets, check_budgets
from redistill.reports.costs import machines, method_cost, teacher_cost
from redistill.reports.lineup import read_lineup
from tests.reports.fabricated import write_json, write_method

SCORES = {"dolly": {10: [20.0, 30.0], 20: [25.0, 35.0]}}
COST = {"updates": 50, "sequences": 800, "trained_tokens": 3000, "generated_tokens": 0, "seconds": 8.0, "peak_bytes": 10**9}


def write(folder: Path, method: str, seed: int = 10, change: dict | None = None, **more) -> Path:
    return write_method(folder, more.get("scores", SCORES), method, seed, change=change, text=more.get("text", ""))


def checked(*folders: Path) -> Budgets:
    return check_budgets(read_lineup(folders))


def test_equal_settings_are_reported_as_equal(tmp_path):
    found = checked(write(tmp_path / "a", "sft"), write(tmp_path / "b", "mgsr"))
    assert found.unequal == []
    for text in (
        "updates 150",
        "sequences per update 16",
        "teacher big",
        "evaluation seeds 10, 20",
        "rows 120 train, 64 validation",
    ):
        assert text in found.equal
    assert any(line.startswith("prompts of dolly 2 ") for line in found.equal)


CHANGES = {
    "updates: 150 (sft), 300 (mgsr)": {"cost.updates": 300},
    "sequences per update: 16 (sft), 32 (mgsr)": {"config.training.batch_size": 32},
    "precision: fp32 (sft), bf16 (mgsr)": {"config.training.precision": "bf16"},
    "adapters: none (sft), rank 4 (mgsr)": {"config.student.lora": {"rank": 4}},
    "patience, in validations: none (sft), 3 (mgsr)": {"config.training.patience": 3},
    "compatibility mode: none (sft), distillm (mgsr)": {"config.compat": "distillm"},
    "updates between validations: 50 (sft), 10 (mgsr)": {"config.training.evaluate_every": 10},
    "training data: train f00df00df0 (sft), train beefbeefbe (mgsr)": {"data.train.sha256": "beef" * 16},
    "training data: train f00df00df0 (sft), train f00df00df0, corpus web (mgsr)": {"data.corpus": {"source": "web"}},
    "rows: 120 train, 64 validation (sft), 90 train, 64 validation (mgsr)": {"data.kept.train": 90},
    "teacher: big (sft), bigger (mgsr)": {"models.teacher.name": "bigger"},
    "student: small (sft), smaller (mgsr)": {"models.student.name": "smaller"},
    "evaluation seeds: 10, 20 (sft), 10 (mgsr)": {"config.evaluation.seeds": [10]},
    "evaluation limit: none (sft), 5 (mgsr)": {"config.evaluation.limit": 5},
    "commit: abc1234 (sft), fff0000 (mgsr)": {"commit": "fff0000"},
    "commit: abc1234 (sft), not recorded (mgsr)": {"commit": None},
}


@pytest.mark.parametrize("line", CHANGES)
def test_a_difference_is_reported_with_runs_and_values_and_nothing_else(line, tmp_path):
    found = checked(write(tmp_path / "a", "sft"), write(tmp_path / "b", "mgsr", change=CHANGES[line]))
    assert list(found.unequal) == [line]


def test_different_sampling_is_reported(tmp_path):
    found = checked(write(tmp_path / "a", "sft"), write(tmp_path / "b", "mgsr", change={"config.evaluation.temperature": 0.5}))
    (line,) = found.unequal
    assert line.startswith("sampling: temperature 1.0, ") and "temperature 0.5, " in line


def test_settings_of_the_scores_override_those_of_the_recipe(tmp_path):
    ours, theirs = write(tmp_path / "a", "sft"), write(tmp_path / "b", "mgsr")
    held = json.loads((theirs / "scores.json").read_text())
    write_json(theirs / "scores.json", held | {"settings": {"seeds": [10, 20, 30]}})
    assert list(checked(ours, theirs).unequal) == ["evaluation seeds: 10, 20 (sft), 10, 20, 30 (mgsr)"]


def test_different_prompts_and_missing_training_seeds_are_reported(tmp_path):
    found = checked(
        write(tmp_path / "a", "sft"),
        write(tmp_path / "b", "mgsr", text="different"),
        write(tmp_path / "c", "mgsr", 20, text="different"),
    )
    seeds, prompts = found.unequal
    assert seeds == "training seeds: 10 (sft), 10, 20 (mgsr)"
    assert prompts.startswith("prompts of dolly: 2 (") and prompts.endswith("(mgsr)")


def test_a_single_differing_run_is_named_with_its_seed(tmp_path):
    runs = [
        write(tmp_path / f"{m}{s}", m, s, {"cost.updates": 99} if (m, s) == ("kd", 20) else None)
        for m in ("sft", "kd")
        for s in (10, 20)
    ]
    lineup = read_lineup(runs)
    assert list(check_budgets(lineup).unequal) == ["updates: 150 (sft, kd seed 10), 99 (kd seed 20)"]


def test_teachers_fine_tuned_per_seed_are_equal_if_the_methods_agree_for_each_seed(tmp_path):
    runs = []
    for method in ("sft", "kd"):
        for seed in (10, 20):
            runs.append(write(tmp_path / f"{method}{seed}", method, seed))
            path = runs[-1] / "teacher" / "scores.json"
            path.write_text(path.read_text().replace("7eac", f"ab{seed}"))
    assert "teacher's weights, for each training seed" in check_budgets(read_lineup(runs)).equal
    path.write_text(path.read_text().replace("ab20", "ffff"))
    (line,) = check_budgets(read_lineup(runs)).unequal
    assert line.startswith("teacher's weights: ") and "(kd seed 20)" in line


def test_a_missing_teacher_or_evaluation_before_training_is_not_a_difference(tmp_path):
    ours, theirs = write(tmp_path / "a", "sft", change={"models.teacher": None}), write(tmp_path / "b", "mgsr")
    for role in ("teacher", "before"):
        (ours / role / "scores.json").unlink()
    assert checked(ours, theirs).unequal == []


def test_settings_that_no_run_recorded_are_reported_as_unknown(tmp_path):
    change = {"commit": None, "config.training.precision": None}
    found = checked(write(tmp_path / "a", "sft", change=change), write(tmp_path / "b", "mgsr", change=change))
    assert found.unequal == [] and {"precision", "commit"} <= set(found.unknown)


# --- costs --------------------------------------------------------------------------------------------------------------


def test_costs_are_means_over_training_seeds_and_include_earlier_stages(tmp_path):
    stages = {"start": {"folder": "start", "cost": COST}, "teacher": {"folder": "tuned", "cost": COST}}
    runs = [write(tmp_path / str(s), "mgsr", s, {"cost.seconds": 10.0 * s, "stages": stages}) for s in (1, 2)]
    entries = read_lineup(runs).entries
    cost = method_cost(entries)
    assert cost.figures["updates"] == 200 and cost.figures["seconds"] == pytest.approx(15 + 8)
    assert cost.figures["peak_bytes"] == 10**9 and cost.figures["parameters"] == 120_000_000
    assert cost.stages == {"start": 50}
    teacher = teacher_cost(entries)
    assert teacher.figures["updates"] == 50 and teacher.figures["parameters"] == 1_500_000_000


def test_a_figure_that_one_run_has_not_recorded_is_none(tmp_path):
    runs = [write(tmp_path / "1", "mgsr", 1, {"cost.peak_bytes": None}), write(tmp_path / "2", "mgsr", 2)]
    cost = method_cost(read_lineup(runs).entries)
    assert cost.figures["peak_bytes"] is None and cost.figures["updates"] == 150
    bare = read_lineup([write(tmp_path / "3", "kd", change={"cost": None})]).entries
    assert method_cost(bare).figures["updates"] is None and teacher_cost(bare) is None


def test_machines_are_distinguished(tmp_path):
    change = {"machine.accelerators": ["One GPU"]}
    runs = [write(tmp_path / "1", "sft"), write(tmp_path / "2", "mgsr", change=change), write(tmp_path / "3", "kd")]
    assert machines(read_lineup(runs).entries) == ["Some CPU", "Some CPU, One GPU"]


def test_different_fine_tuned_weights_of_teacher_or_start_are_reported(tmp_path):
    def stage(letter: str) -> dict:
        return {"folder": "stages/x", "sha256": {"model.safetensors": letter * 64}}

    one, two = ({"stages": {"teacher": stage("a"), "start": stage(letter)}} for letter in "bc")
    base = {"stages": {"teacher": stage("a")}}
    folders = [write(tmp_path / name, name, change=change) for name, change in (("x", one), ("y", two), ("z", base))]
    found = checked(*folders)
    assert "student's start checkpoint: bbbbbbbbbb (x), cccccccccc (y), not fine-tuned (z)" in found.unequal
    assert "fine-tuned teacher aaaaaaaaaa" in found.equal
    assert checked(folders[0], write(tmp_path / "w", "w", change=one)).unequal == []
