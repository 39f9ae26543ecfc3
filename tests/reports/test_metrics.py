"""Reports and comparisons of custom metrics, described in scores.json."""

import csv
import html
import io
from pathlib import Path
from typing import Any

import pytest

from redistill.reports.compare import build_comparison
from redistill.reports.folders import BEFORE_METRICS_HAD_NAMES, measures
from redistill.reports.report import build_report, summary_table
from redistill.reports.terminal import print_comparison, print_scores, print_summary
from tests.reports.fabricated import write_method

DEFAULT = {m.name: {"title": m.title, "unit": m.unit, "better": m.better} for m in BEFORE_METRICS_HAD_NAMES}
EDITS = {"edits": {"title": "edits", "unit": "words", "better": "lower"}, "exact_match": DEFAULT["exact_match"]}
SOLVED = {"solved": {"title": "problems solved", "unit": "fraction", "better": "higher"}, **DEFAULT}
TABLE = {"sft": 30.0, "kd": 20.0, "mgsr": 10.0}


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("LINES", "50")  # without it a dumb terminal has 80 columns


def scores(level: float, *datasets: str) -> dict[str, dict[int, list[float]]]:
    by_seed = {seed: [level + 0.1 * i + seed / 100 for i in range(8)] for seed in (10, 20)}
    return dict.fromkeys(datasets or ("dolly",), by_seed)


def runs(folder: Path, metrics: Any, **kinds: Any) -> list[Path]:
    return [write_method(folder / method, found, method, metrics=metrics) for method, found in kinds.items()]


def table(comparison: Any, key: str) -> Any:
    return next(table for table in comparison.tables if table.key == key)


def cells(line: Any) -> list[str]:
    return [cell.text for cell in line.cells]


def test_a_folder_without_described_metrics_is_read_with_the_default_ones(tmp_path: Path) -> None:
    pages = []
    for name, metrics in (("old", None), ("new", {"dolly": DEFAULT})):
        folders = runs(tmp_path / name, metrics, sft=scores(20.0), mgsr=scores(30.0))
        outputs = [tmp_path / f"{name}.{ending}" for ending in ("html", "md", "tex", "csv")]
        build_comparison(folders, outputs)
        outputs.append(build_report(folders[1], folders[:1], tmp_path / f"{name}-report.html"))
        pages.append([path.read_text(encoding="utf-8").replace(str(tmp_path / name), "") for path in outputs])
    assert pages[0] == pages[1]


@pytest.fixture
def lower(tmp_path: Path) -> list[Path]:
    return runs(tmp_path, {"dolly": EDITS}, **{name: scores(level) for name, level in TABLE.items()})


def test_if_lower_is_better_the_lowest_is_best_and_a_decrease_is_a_win(lower: list[Path]) -> None:
    comparison = build_comparison(lower)
    found = table(comparison, "scores")
    assert found.title == "Edits, words" and "lower is better" in found.caption
    marks = {line.label: line.cells[0].mark for line in found.lines if line.kind == "method"}
    assert marks == {"sft": "", "kd": "second", "mgsr": "best"}
    (line, _) = table(comparison, "difference-dolly").lines[::-1]
    assert line.label == "mgsr" and line.cells[0].text == "−20.00" and line.cells[0].tone == 1
    better, equal, worse = cells(line)[5:8]
    assert (better, equal, worse) == ("8", "0", "0")


def test_if_lower_is_better_the_report_colours_and_counts_a_decrease_as_a_gain(lower: list[Path]) -> None:
    page = build_report(lower[2], lower[:1]).read_text(encoding="utf-8")
    assert '<span class="up">−20.00</span>' in page and "95 % interval below 0 on 1 of 1" in page
    assert "edits, words" in page and "ROUGE" not in page
    prompts = [part.split("<")[0] for part in page.split('<div class="prompt text">')[1:]]
    assert prompts[0].startswith("Question 7?") and prompts[-1].startswith("Question 0?"), "from the worst to the best"


def test_the_csv_has_the_metrics_of_its_runs_in_order(lower: list[Path], tmp_path: Path) -> None:
    build_comparison(lower, [tmp_path / "c.csv"], published=["table1-gpt2"])
    lines = list(csv.DictReader(io.StringIO((tmp_path / "c.csv").read_text(encoding="utf-8"))))
    assert list(lines[0])[3:7] == ["edits", "edits_sd", "rouge_l", "rouge_l_sd"]
    assert lines[-1]["edits"] == "" and float(lines[-1]["rouge_l"]) > 0, "published values have a metric of their own"
    mgsr = next(line for line in lines if line["model"] == "mgsr")
    assert float(mgsr["edits"]) == pytest.approx(10.5) and mgsr["exact_match"] == "0.125" and mgsr["wins"] == "8"


@pytest.fixture
def mixed(tmp_path: Path) -> list[Path]:
    """Two methods on three test sets, the last with its own metric; the second method is better in that metric only."""
    metrics = {"dolly": DEFAULT, "vicuna": DEFAULT, "sums": SOLVED}
    found = {"sft": (30.0, 0.25), "mgsr": (20.0, 0.75)}
    folders = []
    for method, (rouge, fraction) in found.items():
        solved = {"sums": {10: [fraction] * 8, 20: [fraction + 0.1] * 8}}
        folders.append(write_method(tmp_path / method, scores(rouge, "dolly", "vicuna") | solved, method, metrics=metrics))
    return folders


def test_each_primary_metric_has_its_own_tables(mixed: list[Path]) -> None:
    comparison = build_comparison(mixed)
    first, second = table(comparison, "scores"), table(comparison, "scores-solved")
    assert (first.title, first.columns) == ("ROUGE-L", ["", "dolly", "vicuna", "average ROUGE-L"])
    assert (second.title, second.columns) == ("Problems solved", ["", "sums"])
    best = [{line.label: line.cells[-1].mark for line in found.lines if line.kind == "method"} for found in (first, second)]
    assert best == [{"sft": "best", "mgsr": ""}, {"sft": "", "mgsr": "best"}]
    assert cells(second.lines[-1]) == ["80.0 %"] and second.lines[-1].cells[0].detail == "± 7.1 %"
    difference = table(comparison, "difference-sums")
    assert cells(difference.lines[0])[0] == "+50.00" and "in percentage points" in difference.caption
    assert table(comparison, "other-scores-solved").columns[1:3] == ["ROUGE-L", "exact match"]
    assert table(comparison, "cost").columns[1] == "ROUGE-L"


def test_the_terminal_prints_a_table_for_each_primary_metric(mixed: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(mixed[1], mixed[:1])
    printed = capsys.readouterr().out
    assert "ROUGE-L" in printed and "problems solved" in printed and "80.0%" in printed and "+50.00" in printed
    print_comparison(build_comparison(mixed))
    printed = capsys.readouterr().out
    assert "Difference to sft, sums" in printed and "Difference to sft, average ROUGE-L" in printed
    assert "Difference to sft, dolly" not in printed and "Other scores" not in printed


def test_the_report_has_the_columns_of_each_test_set_and_a_tile_for_each_primary_metric(mixed: list[Path]) -> None:
    page = build_report(mixed[1], mixed[:1]).read_text(encoding="utf-8")
    assert "ROUGE-L or problems solved is the mean" in page
    assert "ROUGE-L, mean of 2 data sets" in page and "problems solved, difference to sft" in page
    assert {row["metric"] for row in summary_table(mixed[1])} == {"rouge_l", "solved"}


def test_untrusted_descriptions_of_metrics_are_shown_and_not_interpreted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "<script>alert(1)</script>|\\input{x}\x1b[31m" * 9
    odd = {"=1+1": {"title": "formula"}, "fine": {"title": text, "unit": text, "better": text}, "bare": 7}
    assert [(m.name, m.better) for m in measures({"metrics": odd})] == [("fine", "higher"), ("bare", "higher")]
    assert measures({"metrics": {"=1": {}}}) == measures({"metrics": 3}) == measures(None) == BEFORE_METRICS_HAD_NAMES
    folders = runs(tmp_path, {"dolly": {"fine": odd["fine"], "=1+1": {}}}, sft=scores(20.0), mgsr=scores(30.0))
    outputs = [tmp_path / f"c.{ending}" for ending in ("html", "md", "tex", "csv")]
    print_comparison(build_comparison(folders, outputs))
    outputs.append(build_report(folders[0]))
    printed = capsys.readouterr().out
    page, markdown, latex, table_, report = (path.read_text(encoding="utf-8") for path in outputs)
    for found in (page, report):
        assert found.count("<script") == (1 if found is page else 2) and "<script>alert(1)" in html.unescape(found)
    assert "<script" not in markdown.replace("\\<", "") and "\\input{" not in latex and "=1+1" not in table_
    assert all("\x1b" not in found for found in (page, markdown, latex, table_, report, printed))


def test_scores_of_one_model_are_printed_with_every_metric(capsys: pytest.CaptureFixture[str]) -> None:
    datasets = {"dolly": {**DEFAULT}, "sums": {**SOLVED}}
    seeds = {"dolly": {"rouge_l": 20.0, "exact_match": 0.25}, "sums": {"solved": 0.5, "rouge_l": 1.0, "exact_match": 0.0}}
    described = {
        name: {"prompts": 3, "metrics": datasets[name], "seeds": {"1": {**seeds[name], "length_tokens": 4.0, "eos_rate": 1.0}}}
        for name in datasets
    }
    print_scores({"datasets": described})
    printed = capsys.readouterr().out
    assert [word in printed for word in ("ROUGE-L", "exact match", "problems solved", "25.0%", "50.0%")] == [True] * 5


def test_a_run_without_the_metric_of_a_data_set_has_no_value(tmp_path: Path) -> None:
    (new,) = runs(tmp_path / "new", {"dolly": EDITS}, mgsr=scores(10.0))
    (old,) = runs(tmp_path / "old", None, sft=scores(20.0))
    found = build_comparison([new, old])
    lines = {line.label: cells(line) for line in table(found, "scores").lines if line.kind == "method"}
    assert lines == {"mgsr": ["10.50"], "sft": ["–"]}
    assert cells(table(found, "difference-dolly").lines[0])[0] == "no responses to compare"
