"""A metric and a test set in a file outside the package, through whole runs: log, scores, page, tables, best checkpoint."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from redistill.cli.main import main
from redistill.config.run import encode_run
from redistill.evaluation.scores import EvaluationConfig
from redistill.reports.compare import build_comparison
from redistill.runs.run import evaluate_model
from redistill.runs.templates import tokens_of
from redistill.storage import files
from redistill.training import checkpoint
from tests.worlds import rows, tiny_run, write_rows

MODULE = """
from pathlib import Path

from redistill.data.tasks import Task
from redistill.records import Metric

Path("was_run").touch()

LETTERS = Metric(
    name="answer_letters",
    title="answer length",
    unit="letters",
    better="lower",
    score=lambda answer, record: len(answer),
)
VOWELS = Metric(
    name="vowels",
    title="vowels",
    unit="fraction",
    score=lambda answer, record: sum(letter in "aeiou" for letter in answer) / max(1, len(answer)),
    aggregate=max,
)
OWN_SET = Task(name="own_set", description="whatever the recipe names", metrics=(VOWELS,))
"""
LOWER, HIGHER, TASK = "own_scores:LETTERS", "own_scores:VOWELS", "own_scores:OWN_SET"
ALLOW = ("--allow-code", "own_scores")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with own_scores.py in it; modules imported from it are removed afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("LINES", "50")
    (tmp_path / "own_scores.py").write_text(MODULE, encoding="utf-8")
    yield tmp_path
    sys.modules.pop("own_scores", None)


def recipe(folder: Path, method: str = "sft", **changes: Any) -> str:
    """A recipe of two updates, with `section.field` set as `section__field`."""
    tree = encode_run(tiny_run(folder, method, out=method, training={"updates": 3, "evaluate_every": 1, "keep": 9}))
    for name, value in changes.items():
        section, _, field = name.partition("__")
        tree[section][field] = value
    path = folder / f"{method}.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return str(path)


def validations(folder: Path) -> list[dict[str, Any]]:
    return [line for line in files.read_lines(folder / "metrics.jsonl") if line["kind"] == "validation"]


def forget_the_code(place: Path) -> None:
    """Later commands must not need the module or permission to run it."""
    sys.modules.pop("own_scores", None)
    (place / "own_scores.py").unlink()


@pytest.mark.parametrize(("metric", "better"), [(LOWER, min), (HIGHER, max)])
def test_a_user_metric_is_logged_reported_compared_and_chooses_the_checkpoint(
    place: Path, capsys: pytest.CaptureFixture[str], metric: str, better: Any
) -> None:
    name, heading = {LOWER: ("answer_letters", "answer length, letters"), HIGHER: ("vowels", "vowels")}[metric]
    own = {"evaluation__metrics": [metric, "rouge_l", "exact_match"], "training__choose_by": name}
    for method in ("sft", "kd"):
        assert main(["run", recipe(place, method, **own), *ALLOW]) == 0
    printed = capsys.readouterr()
    folder = place / "sft"
    assert heading in printed.out, "the summary's table"
    assert f"validation {heading.split(',')[0]} " in printed.err, "the log"

    lines = validations(folder)
    assert all(name in line and "rouge_l" in line for line in lines)
    chosen = better((line[name], line["step"]) for line in lines[1:])[0]
    state = checkpoint.load_step(folder / "checkpoints", 3).state["training"]
    assert lines[state["best_step"]][name] == chosen and abs(state["best_score"]) == chosen
    assert json.loads((folder / "run.json").read_text())["config"]["evaluation"]["metrics"][0] == metric

    scores = json.loads((folder / "scores.json").read_text())["datasets"]["toy"]
    assert list(scores["metrics"]) == [name, "rouge_l", "exact_match"]
    answers = files.read_lines(folder / "responses" / "toy-seed10.jsonl")
    whole = max if metric == HIGHER else lambda values: sum(values) / len(values)
    assert scores["seeds"]["10"][name] == pytest.approx(whole([line[name] for line in answers]))

    forget_the_code(place)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert main(["report", str(folder), "--baseline", str(place / "kd"), "-o", "again.html"]) == 0
    for text in (page, (place / "again.html").read_text(encoding="utf-8")):
        assert (
            f'<th scope="col">{heading}</th>' in text
            and f"{heading} is the mean ± standard deviation over evaluation seeds" in text
        )
        assert f"<figcaption>{heading[:1].upper()}{heading[1:]}" in text, "the curve of validation"
    comparison = build_comparison([folder, place / "kd"], [place / "table.md"])
    assert comparison.tables[0].title == heading[:1].upper() + heading[1:]
    assert ("lower is better" in comparison.tables[0].caption) == (metric == LOWER)
    assert comparison.fields[3:5] == [name, f"{name}_sd"] and all(record[name] is not None for record in comparison.records)


def test_a_metric_beside_the_default_ones_is_listed_with_the_other_scores(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", recipe(place, evaluation__metrics=["rouge_l", "exact_match", LOWER]), *ALLOW]) == 0
    comparison = build_comparison([place / "sft"])
    assert comparison.tables[0].title == "ROUGE-L"
    others = next(table for table in comparison.tables if table.key == "other-scores")
    assert others.columns[1:3] == ["exact match", "answer length, letters"] and "lower is better" in others.caption
    assert '<th scope="col">answer length, letters</th>' in (place / "sft/report.html").read_text(encoding="utf-8")
    capsys.readouterr()
    arguments = ["evaluate", "sft", "--data", f"toy={place / 'test.jsonl'}", "--seeds", "10", "--out", "scores"]
    assert main([*arguments, "--metric", LOWER]) == 2
    assert capsys.readouterr().err == (
        f"redistill: metrics = '{LOWER}': external code is not allowed; add --allow-code own_scores\n"
    )
    assert main([*arguments, "--metric", LOWER, "--metric", "rouge_l", *ALLOW]) == 0
    printed = capsys.readouterr().out
    assert printed.index("answer length, letters") < printed.index("ROUGE-L") and "exact match" not in printed


def test_a_user_test_set_has_its_own_metric_first(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tests = {TASK: write_rows(place / "own.jsonl", rows(3, 40)), "toy": str(place / "test.jsonl")}
    written = recipe(place, data__tests=tests)
    capsys.readouterr()
    assert main(["run", written]) == 2
    assert capsys.readouterr().err == (
        f"redistill: {written}: data.tests = '{TASK}': external code is not allowed; add --allow-code own_scores\n"
    )
    assert not (place / "was_run").exists() and not (place / "sft").exists()
    assert main(["run", written, *ALLOW]) == 0
    printed, folder = capsys.readouterr().out, place / "sft"
    assert "own_set" in printed and "vowels" in printed and "ROUGE-L" in printed
    assert "vowels" not in validations(folder)[0], "validation has the recipe's metrics alone"

    datasets = json.loads((folder / "scores.json").read_text())["datasets"]
    assert [list(found["metrics"]) for found in datasets.values()] == [
        ["vowels", "rouge_l", "exact_match"],
        ["rouge_l", "exact_match"],
    ]
    answers = files.read_lines(folder / "responses" / "own_set-seed10.jsonl")
    assert datasets["own_set"]["seeds"]["10"]["vowels"] == max(line["vowels"] for line in answers)
    assert "test own_set" in json.loads((folder / "run.json").read_text())["data"]

    assert main(["data", "check", "--recipe", written, *ALLOW]) in {0, 1} and "own_set" in capsys.readouterr().out
    model, config = tiny_run(place).teacher, EvaluationConfig(seeds=(10,))
    assert model is not None
    asked = {TASK: tests[TASK]}
    found = evaluate_model(model, asked, config, tokens_of(str(folder)), place / "e", allow_code=["own_scores"])
    assert next(iter(found["datasets"]["own_set"]["metrics"])) == "vowels"

    forget_the_code(place)
    assert main(["report", str(folder)]) == 0
    assert '<th scope="col">vowels</th>' in (folder / "report.html").read_text(encoding="utf-8")
    assert main(["compare", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "Vowels" in printed and "ROUGE-L" in printed
