"""The commands `recipes` and `data sample`."""

import json
from pathlib import Path

import pytest

from redistill.cli.main import main
from redistill.config.recipes import packaged_recipes
from redistill.config.run import load_config
from redistill.data.reader import read_records


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current folder, which is empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def printed(capsys, *words: str) -> str:
    assert main(words) == 0
    return capsys.readouterr().out


def test_the_list_has_every_recipe_and_fits_80_columns(capsys):
    lines = printed(capsys, "recipes", "list").splitlines()
    assert max(map(len, lines)) <= 80
    assert {line.strip() for line in lines} >= set(packaged_recipes())
    listed = json.loads(printed(capsys, "recipes", "list", "--json"))["recipes"]
    assert {each["name"]: each["kind"] for each in listed} == {name: each.kind for name, each in packaged_recipes().items()}


def test_a_recipe_is_shown_and_copied_verbatim(capsys, folder):
    text = packaged_recipes()["smollm2-small"].path.read_text(encoding="utf-8")
    assert printed(capsys, "recipes", "show", "smollm2-small") == text
    assert json.loads(printed(capsys, "recipes", "show", "smollm2-small", "--json"))["text"] == text
    assert "redistill run new/mine.yaml" in printed(capsys, "recipes", "copy", "smollm2-small", "--out", "new/mine.yaml")
    assert (folder / "new/mine.yaml").read_text(encoding="utf-8") == text
    assert json.loads(printed(capsys, "recipes", "copy", "opt", "--json"))["path"] == "opt.yaml"


def test_a_copy_does_not_replace_a_file_with_other_contents(capsys, folder):
    (folder / "opt.yaml").write_text("mine")
    assert main(["recipes", "copy", "opt"]) == 2
    assert capsys.readouterr().err == "redistill: opt.yaml: exists and has other contents; choose another --out\n"
    assert (folder / "opt.yaml").read_text() == "mine"
    assert main(["recipes", "copy", "opt", "--out", "."]) == 2


def test_a_name_that_is_no_recipe_is_one_line(capsys):
    assert main(["recipes", "show", "../opt\n"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_sample_has_usable_rows_which_its_test_set_does_not_repeat(capsys, folder):
    assert printed(capsys, "data", "sample") == "sample/train.jsonl\nsample/test.jsonl\n"
    assert printed(capsys, "data", "sample") == "sample/train.jsonl\nsample/test.jsonl\n", "the same command again"
    run = load_config(Path("smollm2-sample"))
    parts = [read_records(folder / path) for path in (*run.data.train, run.data.tests["sample"])]
    assert [len(records) for records, _ in parts] == [216, 40] and not any(report.rejected for _, report in parts)
    prompts = [record.prompt for records, _ in parts for record in records]
    assert len(set(map(str, prompts))) == 256
    assert main(["data", "check", "sample/train.jsonl", "--against", "sample=sample/test.jsonl"]) == 0
