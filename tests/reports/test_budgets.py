"""What is equal in compared runs and what is not; and what they cost."""

import json
from pathlib import Path

import pytest

from redistill.reports.budgets import Budgets, check_budgets
from redistill.reports.costs import machines, method_cost, teacher_cost
from redistill.reports.lineup import read_lineup
from tests.reports.fabricated import write_json, write_method

SCORES = {"dolly": {10: [20.0, 30.0], 20: [25.0, 35.0]}}
COST = {"updates": 50, "sequences": 800, "trained_tokens": 3000, "generated_tokens": 0, "seconds": 8.0, "peak_bytes": 10**9}


def place(folder: Path, method: str, seed: int = 10, change: dict | None = None, **more) -> Path:
    return write_method(folder, more.get("scores", SCORES), method, seed, change=change, text=more.get("text", ""))


def checked(*folders: Path) -> Budgets:
    return check_budgets(read_lineup(folders))


def test_equal_runs_are_said_to_be_equal(tmp_path):
    found = checked(place(tmp_path / "a", "sft"), place(tmp_path / "b", "mgsr"))
    assert found.unequal == []
    for said in (
        "updates 150",
        "sequences of an update 16",
        "teacher big",
        "evaluation seeds 10, 20",
        "rows 120 train, 64 validation",
    ):
        assert said in found.equal
    assert any(line.startswith("prompts of dolly 2 ") for line in found.equal)


CHANGES = {
    "updates: 150 (sft), 300 (mgsr)": {"cost.updates": 300},
    "sequences of an update: 16 (sft), 32 (mgsr)": {"config.training.batch_size": 32},
    "precision: fp32 (sft), bf16 (mgsr)": {"config.training.precision": "bf16"},
    "adapters: none (sft), rank 4 (mgsr)": {"config.student.lora": {"rank": 4}},
    "validations without gain allowed: none (sft), 3 (mgsr)": {"config.training.patience": 3},
    "habits of the reference code: none (sft), distillm (mgsr)": {"config.compat": "distillm"},
    "updates between validations: 50 (sft), 10 (mgsr)": {"config.training.evaluate_every": 10},
    "data learnt from: train f00df00df0 (sft), train beefbeefbe (mgsr)": {"data.train.sha256": "beef" * 16},
    "data learnt from: train f00df00df0 (sft), train f00df00df0, corpus web (mgsr)": {"data.corpus": {"source": "web"}},
    "rows: 120 train, 64 validation (sft), 90 train, 64 validation (mgsr)": {"data.kept.train": 90},
    "teacher: big (sft), bigger (mgsr)": {"models.teacher.name": "bigger"},
    "student: small (sft), smaller (mgsr)": {"models.student.name": "smaller"},
    "evaluation seeds: 10, 20 (sft), 10 (mgsr)": {"config.evaluation.seeds": [10]},
    "evaluation limit: none (sft), 5 (mgsr)": {"config.evaluation.limit": 5},
    "commit: abc1234 (sft), fff0000 (mgsr)": {"commit": "fff0000"},
    "commit: abc1234 (sft), not recorded (mgsr)": {"commit": None},
}


@pytest.mark.parametrize("said", CHANGES)
def test_a_disagreement_names_runs_and_values_and_nothing_else_is_flagged(said, tmp_path):
    found = checked(place(tmp_path / "a", "sft"), place(tmp_path / "b", "mgsr", change=CHANGES[said]))
    assert list(found.unequal) == [said]


def test_other_sampling_is_flagged(tmp_path):
    found = checked(place(tmp_path / "a", "sft"), place(tmp_path / "b", "mgsr", change={"config.evaluation.temperature": 0.5}))
    (line,) = found.unequal
    assert line.startswith("sampling: temperature 1.0, ") and "temperature 0.5, " in line


def test_the_scores_own_settings_stand_above_the_recipes(tmp_path):
    ours, theirs = place(tmp_path / "a", "sft"), place(tmp_path / "b", "mgsr")
    held = json.loads((theirs / "scores.json").read_text())
    write_json(theirs / "scores.json", held | {"settings": {"seeds": [10, 20, 30]}})
    assert list(checked(ours, theirs).unequal) == ["evaluation seeds: 10, 20 (sft), 10, 20, 30 (mgsr)"]


def test_other_prompts_and_missing_training_seeds_are_flagged(tmp_path):
    found = checked(
        place(tmp_path / "a", "sft"),
        place(tmp_path / "b", "mgsr", text="otherwise"),
        place(tmp_path / "c", "mgsr", 20, text="otherwise"),
    )
    seeds, prompts = found.unequal
    assert seeds == "training seeds: 10 (sft), 10, 20 (mgsr)"
    assert prompts.startswith("prompts of dolly: 2 (") and prompts.endswith("(mgsr)")


def test_a_single_run_that_strays_is_named_with_its_seed(tmp_path):
    runs = [
        place(tmp_path / f"{m}{s}", m, s, {"cost.updates": 99} if (m, s) == ("kd", 20) else None)
        for m in ("sft", "kd")
        for s in (10, 20)
    ]
    lineup = read_lineup(runs)
    assert list(check_budgets(lineup).unequal) == ["updates: 150 (sft, kd seed 10), 99 (kd seed 20)"]


def test_a_teacher_tuned_for_each_seed_is_equal_if_the_methods_agree_seed_by_seed(tmp_path):
    runs = []
    for method in ("sft", "kd"):
        for seed in (10, 20):
            runs.append(place(tmp_path / f"{method}{seed}", method, seed))
            path = runs[-1] / "teacher" / "scores.json"
            path.write_text(path.read_text().replace("7eac", f"ab{seed}"))
    assert "teacher's weights, seed by seed" in check_budgets(read_lineup(runs)).equal
    path.write_text(path.read_text().replace("ab20", "ffff"))
    (line,) = check_budgets(read_lineup(runs)).unequal
    assert line.startswith("teacher's weights: ") and "(kd seed 20)" in line


def test_a_method_without_a_teacher_and_a_missing_evaluation_before_training_are_no_disagreement(tmp_path):
    ours, theirs = place(tmp_path / "a", "sft", change={"models.teacher": None}), place(tmp_path / "b", "mgsr")
    for role in ("teacher", "before"):
        (ours / role / "scores.json").unlink()
    assert checked(ours, theirs).unequal == []


def test_what_no_run_has_recorded_is_said(tmp_path):
    change = {"commit": None, "config.training.precision": None}
    found = checked(place(tmp_path / "a", "sft", change=change), place(tmp_path / "b", "mgsr", change=change))
    assert found.unequal == [] and {"precision", "commit"} <= set(found.unknown)


# --- costs --------------------------------------------------------------------------------------------------------------


def test_costs_are_means_over_training_seeds_with_the_stages_that_came_before(tmp_path):
    stages = {"start": {"folder": "start", "cost": COST}, "teacher": {"folder": "tuned", "cost": COST}}
    runs = [place(tmp_path / str(s), "mgsr", s, {"cost.seconds": 10.0 * s, "stages": stages}) for s in (1, 2)]
    entries = read_lineup(runs).entries
    cost = method_cost(entries)
    assert cost.figures["updates"] == 200 and cost.figures["seconds"] == pytest.approx(15 + 8)
    assert cost.figures["peak_bytes"] == 10**9 and cost.figures["parameters"] == 120_000_000
    assert cost.stages == {"start": 50}
    teacher = teacher_cost(entries)
    assert teacher.figures["updates"] == 50 and teacher.figures["parameters"] == 1_500_000_000


def test_what_one_run_has_not_recorded_is_not_a_mean_of_the_others(tmp_path):
    runs = [place(tmp_path / "1", "mgsr", 1, {"cost.peak_bytes": None}), place(tmp_path / "2", "mgsr", 2)]
    cost = method_cost(read_lineup(runs).entries)
    assert cost.figures["peak_bytes"] is None and cost.figures["updates"] == 150
    bare = read_lineup([place(tmp_path / "3", "kd", change={"cost": None})]).entries
    assert method_cost(bare).figures["updates"] is None and teacher_cost(bare) is None


def test_machines_are_told_apart(tmp_path):
    change = {"machine.accelerators": ["One GPU"]}
    runs = [place(tmp_path / "1", "sft"), place(tmp_path / "2", "mgsr", change=change), place(tmp_path / "3", "kd")]
    assert machines(read_lineup(runs).entries) == ["Some CPU", "Some CPU, One GPU"]


def test_another_fine_tuned_teacher_or_start_is_flagged_by_its_weights(tmp_path):
    def stage(letter: str) -> dict:
        return {"folder": "stages/x", "sha256": {"model.safetensors": letter * 64}}

    one, two = ({"stages": {"teacher": stage("a"), "start": stage(letter)}} for letter in "bc")
    base = {"stages": {"teacher": stage("a")}}
    folders = [place(tmp_path / name, name, change=change) for name, change in (("x", one), ("y", two), ("z", base))]
    found = checked(*folders)
    assert "student's start: bbbbbbbbbb (x), cccccccccc (y), not fine-tuned (z)" in found.unequal
    assert "fine-tuned teacher aaaaaaaaaa" in found.equal
    assert checked(folders[0], place(tmp_path / "w", "w", change=one)).unequal == []
