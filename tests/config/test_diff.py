"""The differences of two recipes: exactly the fields whose values differ, after defaults."""

import json

import pytest
import yaml

from redistill.cli.main import main
from redistill.config.diff import config_diff
from redistill.config.run import Run, decode_run, encode_run

TREE = {"name": "r", "method": "kd", "teacher": {"model": "t"}, "student": {"model": "s"}}


def run(**changes: object) -> Run:
    return decode_run(TREE | changes, "r")


def test_a_recipe_does_not_differ_from_itself_with_all_defaults():
    assert config_diff(run(), decode_run(encode_run(run()), "printed")) == []
    assert config_diff(run(), run(seed=10, training={"updates": 1000})) == [], "the defaults, written"


def test_the_order_of_the_recipes_only_swaps_the_values():
    changed = run(method="gkd", seed=3, data={"tests": {"dolly": None}}, student={"model": "x", "lora": {"rank": 4}})
    forth, back = config_diff(run(), changed), config_diff(changed, run())
    swapped = [each._replace(left=each.right, right=each.left) for each in back]
    assert sorted(forth, key=lambda each: each.name) == sorted(swapped, key=lambda each: each.name)
    found = {each.name: (each.left, each.right) for each in forth}
    assert found["seed"] == (10, 3) and found["student.lora.rank"] == (None, 4) and found["method"] == ("kd", "gkd")
    assert found["policy.kind"] == ("fixed", "mixed"), "the policy of the method, which the recipe does not name"


@pytest.mark.parametrize("as_json", [True, False])
def test_recipes_and_run_folders_are_compared(as_json, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(TREE))
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text(json.dumps({"schema": 2, "config": encode_run(run(seed=11))}))
    flags = ["--json"] if as_json else []
    assert main(["config", "diff", "a.yaml", "run", *flags]) == 0
    printed = capsys.readouterr().out
    if as_json:
        assert json.loads(printed)["differences"] == [{"name": "seed", "left": 10, "right": 11}]
    else:
        assert printed == "seed: 10 -> 11\n"
    assert main(["config", "diff", "run", "run"]) == 0
    assert capsys.readouterr().out == "no setting differs\n"
    assert main(["config", "diff", "a.yaml", "table1-toy"]) == 2
