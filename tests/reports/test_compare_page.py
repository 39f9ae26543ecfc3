"""The comparison page: its numbers are those of the files, and old run folders are shown as far as they go."""

import csv
import html
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from redistill.cli.main import main
from redistill.deploy.scores import export_scores
from redistill.reports.compare import build_comparison
from redistill.reports.inference import Contrast, contrast
from redistill.reports.terminal import print_comparison
from redistill.storage import files
from tests.reports.complete import DECODINGS
from tests.reports.fabricated import write_json, write_lines, write_method, write_scores, write_sweep

SEEDS, DATASETS = (10, 20), ("dolly", "vicuna")


class Tables(HTMLParser):
    """The texts of the cells of all tables, by the label of the table and that of the row."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: dict[str, dict[str, list[str]]] = {}
        self._rows: dict[str, list[str]] = {}
        self._row: list[str] | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "div" and ("role", "region") in attributes:
            self._rows = self.found.setdefault(str(dict(attributes)["aria-label"]), {})
        if tag == "tr":
            self._row = []
        if tag in ("th", "td") and self._row is not None:
            self._row.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "tr" and self._row:
            self._rows[self._row[0]] = self._row[1:]
            self._row = None

    def handle_data(self, data: str) -> None:
        if self._row:
            self._row[-1] = f"{self._row[-1]} {data.strip()}".strip()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sweep = write_sweep(tmp_path_factory.mktemp("compare") / "sweep", {"sft": 0.0, "mgsr": 9.0}, seeds=SEEDS, prompts=12)
    rng = np.random.default_rng(3)
    for path in sorted(sweep.glob("*/scores.json")):
        scores = files.read_json(path)
        for about in scores["datasets"].values():
            about["decodings"] = {name: {"sampling": sampling, "seeds": {}} for name, sampling in DECODINGS.items()}
        for dataset, name, seed in itertools.product(scores["datasets"], DECODINGS, ("10", "20")):
            lines = files.read_lines(path.parent / "responses" / f"{dataset}-seed{seed}.jsonl")
            lines = [{**line, "rouge_l": 40 * rng.random()} for line in lines]
            write_lines(path.parent / "responses" / f"{dataset}@{name}-seed{seed}.jsonl", lines)
            seeds = scores["datasets"][dataset]["decodings"][name]["seeds"]
            seeds[seed] = {"rouge_l": float(np.mean([line["rouge_l"] for line in lines]))}
        write_json(path, scores)
    return sweep


@pytest.fixture(scope="module")
def page(sweep: Path) -> str:
    build_comparison([sweep], [sweep.parent / "compare.html"])
    return (sweep.parent / "compare.html").read_text(encoding="utf-8")


def test_the_forest_plot_is_part_of_the_verdict(page):
    verdict, _, rest = page[page.index('<h2 id="verdict"') :].partition('<h2 id="charts"')
    assert verdict.count("<svg") == 1 and "Difference to sft" in verdict
    assert "second best, is " in verdict[: verdict.index("<svg")] and rest.count("<svg") > 1


def scores_of(sweep: Path, method: str, dataset: str, decoding: str = "") -> np.ndarray:
    """Scores in the responses files, [training seeds, evaluation seeds, prompts]."""
    dataset += f"@{decoding}" if decoding else ""
    found = []
    for seed in SEEDS:
        folder = sweep / f"{method}-seed{seed}" / "responses"
        texts = [(folder / f"{dataset}-seed{each}.jsonl").read_text() for each in (10, 20)]
        found.append([[json.loads(line)["rouge_l"] for line in text.splitlines()] for text in texts])
    return np.array(found)


def test_scores_and_differences_are_those_of_the_files_to_the_printed_digit(sweep, page):
    tables = Tables(page).found
    means = {}
    for method in ("sft", "mgsr"):
        by_dataset = [scores_of(sweep, method, dataset).mean(axis=(1, 2)) for dataset in DATASETS]
        columns = [*by_dataset, np.mean(by_dataset, axis=0)]
        assert tables["ROUGE-L"][method] == [f"{found.mean():.2f} ± {found.std(ddof=1):.2f}" for found in columns]
        means[method] = columns[-1].mean()
    row = tables["Difference to sft, average"]["mgsr"]
    found = contrast([(scores_of(sweep, "mgsr", each) - scores_of(sweep, "sft", each)).mean(axis=1) for each in DATASETS], 2, 1)
    assert row[0] == f"{means['mgsr'] - means['sft']:+.2f}" == f"{found.interval.difference:+.2f}"
    assert row[1] == f"{found.interval.lower:+.2f} to {found.interval.upper:+.2f}" and row[4] == f"{found.detectable:.2f}"
    assert row[2] == f"{found.p:.3f}" and row[5:8] == [str(found.wins), str(found.ties), str(found.losses)]
    chart = re.search(r'aria-label="Differences to sft on average: mgsr ([^"]*)"', page)[1]
    assert chart == f"{row[0]} ({row[1]})"
    assert f"{row[0]} ROUGE-L (95 % interval {row[1]})" in page and f"finds with a probability of 80 % is {row[4]}." in page


def test_scores_of_further_decodings_are_those_of_the_files(sweep, page):
    """Means over evaluation seeds, data sets and training seeds; the table has the main decoding first."""
    tables = {title: rows for title, rows in Tables(page).found.items() if "greedy" in rows.get("", [])}
    assert len(tables) == 3
    (average,) = (rows for title, rows in tables.items() if "average" in title)
    for method in ("sft", "mgsr"):
        for name, title in (("greedy", "greedy"), ("cold", "T 0.5, top-p 0.9")):
            by_run = []
            for seed in SEEDS:
                held = files.read_json(sweep / f"{method}-seed{seed}" / "scores.json")["datasets"]
                by_run.append([each["rouge_l"] for of in DATASETS for each in held[of]["decodings"][name]["seeds"].values()])
            cell = average[method][average[""].index(title)]
            assert cell.startswith(f"{np.mean(by_run):.2f} "), (cell, method, title)


def differences_of(sweep: Path, decoding: str = "") -> Contrast:
    pairs = [(scores_of(sweep, "mgsr", each, decoding), scores_of(sweep, "sft", each, decoding)) for each in DATASETS]
    return contrast([(mine - other).mean(axis=1) for mine, other in pairs], 2, 1)


@pytest.mark.parametrize("shape", ["html", "md", "terminal", "exported"])
def test_differences_with_each_decoding_are_tested_as_those_of_the_main_decoding(
    shape, sweep, page, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "250")
    titles = {"": "main (T 1)", "greedy": "greedy", "cold": "T 0.5, top-p 0.9"}
    expected = {}
    for name, title in titles.items():
        found = differences_of(sweep, name)
        middle, lower, upper = (
            f"{each:+.2f}".replace("-", "−") for each in (found.interval.difference, found.interval.lower, found.interval.upper)
        )
        expected[f"mgsr, {title}"] = [
            middle,
            f"{lower} to {upper}",
            f"{found.p:.3f}",
            f"{found.p:.3f}",
            f"{found.detectable:.2f}",
        ]
    if shape == "html":
        rows = Tables(page).found["Difference to sft by decoding, average"]
        assert {label: cells[:5] for label, cells in rows.items() if label} == expected
        assert all(cells[-1] == "methods, 2 seeds" for label, cells in rows.items() if label)
    elif shape == "terminal":
        print_comparison(build_comparison([sweep]))
        printed = capsys.readouterr().out
        assert "Difference to sft by decoding, average" in printed and "by decoding, dolly" not in printed
        assert all(label in printed for label in expected)
    else:
        folder = export_scores(sweep, tmp_path / "scores").folder if shape == "exported" else sweep
        build_comparison([folder], [tmp_path / "compare.md"])
        text = (tmp_path / "compare.md").read_text(encoding="utf-8")
        assert all(f"|{label}|{'|'.join(cells)}|" in text for label, cells in expected.items())


def test_the_csv_has_the_differences_with_each_decoding_in_full_precision(sweep, tmp_path):
    build_comparison([sweep], [tmp_path / "compare.csv"])
    with (tmp_path / "compare.csv").open(encoding="utf-8") as text:
        lines = [line for line in csv.DictReader(text) if line["model"] == "mgsr" and line["column"] == "average"]
    for name, title in {"": "", "greedy": "greedy", "cold": "T 0.5, top-p 0.9"}.items():
        (line,) = (line for line in lines if line["decoding"] == title)
        found = differences_of(sweep, name)
        for field in ("p", "detectable"):
            assert float(line[field]) == pytest.approx(getattr(found, field))
        for field in ("difference", "lower", "upper"):
            assert float(line[field]) == pytest.approx(getattr(found.interval, field))
        assert line["about"] == "methods" and line["versus"] == "sft"


def test_costs_sizes_and_speeds_are_those_of_the_files(sweep, page):
    tables, run = Tables(page).found, sweep / "mgsr-seed10"
    cost, held = json.loads((run / "run.json").read_text())["cost"], json.loads((run / "scores.json").read_text())
    assert tables["Cost and quality"]["mgsr"][1:] == ["150", "2.4 k", "90 k", "40 k", "30", "800 MB", "120 M"]
    assert (cost["updates"], cost["generated_tokens"], cost["seconds"]) == (150, 40_000, 30.0)
    score, teacher = (float(tables["ROUGE-L"][model][2].split()[0]) for model in ("mgsr", "teacher"))
    shown = tables["Size and speed"]["mgsr"]
    assert shown[0] == f"{score:.2f}" and abs(float(shown[1].split()[0]) - 100 * score / teacher) < 0.06
    assert shown[2:5] == ["120 M (0.08×)", "240 MB (0.08×)", "450 (4.50× of 100)"]
    assert (held["parameters"], held["tokens_per_s"]) == (120_000_000, 450)
    latency = held["latency"]
    assert shown[5:7] == [f"{latency['p50_s']:.3f} (0.30× of 2.500)", f"{latency['p95_s']:.3f} (0.36× of 4.125)"]
    assert "Training took 30 seconds and 90 k trained tokens for mgsr, and 30 seconds and 90 k trained tokens for sft." in page


def test_every_response_and_its_score_are_those_of_the_files(sweep, page):
    cards = re.findall(r'<details class="card answer response".*?</details>', page, re.DOTALL)
    assert len(cards) == 24 and "All 24 test prompts" in page
    for card in cards:
        dataset, prompt = re.search(r"small soft\">(\w+) · (\S+) ·", card).groups()
        found = dict(re.findall(r"<b>(sft|mgsr)</b><span>ROUGE-L ([\d.]+)", card))
        scores = {}
        for method in ("sft", "mgsr"):
            path = sweep / f"{method}-seed10" / "responses" / f"{dataset}-seed10.jsonl"
            line = next(line for line in map(json.loads, path.read_text().splitlines()) if line["id"] == prompt)
            assert html.escape(line["response"]) in card and found[method] == f"{line['rouge_l']:.2f}"
            scores[method] = line["rouge_l"]
        assert f"disagreement {abs(scores['mgsr'] - scores['sft']):.2f}" in card


def test_different_settings_and_the_commands_are_shown(tmp_path):
    scores = {"dolly": {10: [1.0, 2.0]}}
    changes = {"config.optimiser": {"learning_rate": 0.001}, "command": "redistill run mgsr.yaml"}
    runs = [write_method(tmp_path / "a b", scores, "sft"), write_method(tmp_path / "c", scores, "mgsr", change=changes)]
    arguments = ["compare", *map(str, runs), "--baseline", "sft", "-o", str(tmp_path / "compare.html")]
    assert main(arguments) == 0
    page = (tmp_path / "compare.html").read_text(encoding="utf-8")
    assert Tables(page).found["Settings that differ"]["optimiser.learning_rate"] == ["not set (sft) ; 0.001 (mgsr)"]
    assert f"redistill compare '{runs[0]}' {runs[1]} --baseline sft -o compare.html" in html.unescape(page)
    assert "<code>redistill run mgsr.yaml</code>" in page


def test_a_page_is_at_most_3_mb_and_says_how_many_prompts_it_shows(tmp_path):
    scores = {"dolly": {10: [float(i) for i in range(60)]}}
    runs = [write_method(tmp_path / method, scores, method, text="&" * 2000) for method in ("sft", "mgsr")]
    build_comparison(runs, [tmp_path / "compare.html"])
    page = (tmp_path / "compare.html").read_text(encoding="utf-8")
    shown = page.count('<details class="card answer response"')
    assert 2_000_000 < len(page.encode()) < 3_000_000 and 30 < shown < 60
    assert f"{shown} of 60 test prompts, evenly spaced" in page


def test_old_run_folders_are_compared_and_what_they_lack_is_named(tmp_path):
    for method in ("sft", "mgsr"):
        folder = tmp_path / method
        write_json(folder / "run.json", {"schema": 1, "name": method, "method": method, "status": "finished"})
        write_scores(folder, method, {"dolly": {10: [1.0, 2.0, 3.0]}})  # the format of commit 98f02f3
    build_comparison([tmp_path / "sft", tmp_path / "mgsr"], [tmp_path / "compare.html"])
    page = (tmp_path / "compare.html").read_text(encoding="utf-8")
    tables = Tables(page).found
    assert tables["Cost and quality"]["mgsr"][1:] == [*["–"] * 6, "120 M"]
    assert re.search(r"Not recorded: updates, [^<]*commit", page) and "No setting of the recipes differs" in page
    assert "All 3 test prompts" in page and "Quality and training seconds" not in page
