"""Settings that differ between methods, and the commands of the runs."""

from redistill.reports.lineup import read_lineup
from redistill.reports.settings import NOT_SET, commands, different_settings
from tests.reports.fabricated import write_method

SCORES = {"dolly": {10: [1.0, 2.0]}}


def test_only_settings_with_different_values_are_listed(tmp_path):
    change = {"config.training.updates": 300, "config.objective": {"divergence": {"kind": "rkl", "alpha": None}}}
    runs = [
        write_method(tmp_path / "a", SCORES, "sft"),
        write_method(tmp_path / "b", SCORES, "kd", change=change),
        write_method(tmp_path / "c", SCORES, "kd", seed=20, change=change),
        write_method(tmp_path / "d", SCORES, "mgsr"),
    ]
    found = {setting.name: setting.values for setting in different_settings(read_lineup(runs))}
    assert found == {
        "training.updates": [("150", ["sft", "mgsr"]), ("300", ["kd"])],
        "objective.divergence.kind": [(NOT_SET, ["sft", "mgsr"]), ("rkl", ["kd"])],
    }


def test_a_run_without_a_recipe_has_no_settings(tmp_path):
    runs = [write_method(tmp_path / "a", SCORES, "sft"), write_method(tmp_path / "b", SCORES, "kd", change={"config": "?"})]
    found = different_settings(read_lineup(runs))
    assert found and all(setting.values[1] == (NOT_SET, ["kd"]) for setting in found)


def test_secrets_in_settings_are_masked(tmp_path):
    secret = "hf_abcdefghijklmnop"
    changes = {"config.teacher": {"model": f"https://me:{secret}@host/a"}}
    runs = [write_method(tmp_path / "a", SCORES, "sft"), write_method(tmp_path / "b", SCORES, "kd", change=changes)]
    (found,) = different_settings(read_lineup(runs))
    assert found.name == "teacher.model" and secret not in str(found)


def test_commands_are_listed_for_the_runs_that_recorded_one(tmp_path):
    runs = [
        write_method(tmp_path / "a", SCORES, "sft", change={"command": "redistill run a.yaml"}),
        write_method(tmp_path / "b", SCORES, "kd", change={"command": ["redistill", "run", "b.yaml"]}),
        write_method(tmp_path / "c", SCORES, "mgsr"),
    ]
    assert commands(read_lineup(runs)) == [("sft, seed 10", "redistill run a.yaml"), ("kd, seed 10", "redistill run b.yaml")]
