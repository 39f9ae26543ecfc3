"""Scores of a report: all numbers of scores.json, intervals of each metric, and decodings of each model."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from redistill.reports.report import build_report
from redistill.reports.statistics import paired_bootstrap
from redistill.storage import files
from tests.reports.fabricated import PROMPTS, write_json, write_lines, write_run
from tests.reports.page import Page

MODELS = {"teacher": "mine/teacher", "before training": "mine/before", "plain-sft": "sft", "mine": "mine"}
DECODINGS = {"greedy": {"temperature": 0.0}, "T0.8": {"temperature": 0.8}}
EXACT = {
    "rouge_l": {"title": "ROUGE-L", "unit": "%", "better": "higher"},
    "exact_match": {"title": "exact match", "unit": "fraction", "better": "higher"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run and a baseline with random scores for both metrics, pass@k, latency of the first token and decodings."""
    folder, rng = tmp_path_factory.mktemp("scores"), np.random.default_rng(5)
    write_run(folder / "mine", "mine")
    write_run(folder / "sft", "plain-sft", role="baseline")
    for part in ("mine", "mine/teacher", "mine/before", "sft"):
        add_scores(folder / part, rng, has_decodings=part != "mine/before")
    return folder


def add_scores(folder: Path, rng: np.random.Generator, *, has_decodings: bool) -> None:
    scores = files.read_json(folder / "scores.json")
    scores["latency"] |= {"first_token_p50_s": float(rng.uniform()), "first_token_p95_s": 1.5, "mean_tokens": 12.25}
    for name, dataset in scores["datasets"].items():
        dataset |= {"metrics": EXACT, "pass_at": {"exact_match": {"2": float(rng.uniform()), "5": float(rng.uniform())}}}
        seeds = {}
        for seed, found in dataset["seeds"].items():
            path = folder / "responses" / f"{name}-seed{seed}.jsonl"
            lines = [{**line, "exact_match": bool(rng.uniform() < 0.4)} for line in files.read_lines(path)]
            lines = [{**line, "rouge_l": float(rng.uniform(10, 90))} for line in lines]
            write_lines(path, lines)
            means = {metric: float(np.mean([line[metric] for line in lines])) for metric in EXACT}
            seeds[seed] = {**found, **means, "distinct_1": float(rng.uniform())}
        dataset["seeds"] = seeds
        if has_decodings:
            dataset["decodings"] = {
                title: {
                    "sampling": sampling,
                    "seeds": {seed: {**found, "rouge_l": float(rng.uniform(10, 90))} for seed, found in seeds.items()},
                }
                for title, sampling in DECODINGS.items()
            }
    write_json(folder / "scores.json", scores)


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page(build_report(folder / "mine", [folder / "sft"]).read_text(encoding="utf-8"))


def leaves(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from leaves(each)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def numbers(page: Page) -> dict[str, dict[str, str]]:
    """The table of all numbers: path of a key -> model -> cell."""
    (table,) = [table for table in page.tables if table and table[1][0] == "schema"]
    return {row[0]: dict(zip(table[0], row, strict=True)) for row in table[1:]}


def test_every_number_of_scores_json_is_on_the_page(folder, page):
    table = numbers(page)
    for label, part in MODELS.items():
        shown = [text for row in table.values() for text in row[label].split(", ") if text != "–"]
        expected = [*leaves(json.loads((folder / part / "scores.json").read_text()))]
        assert len(expected) > 40
        assert sorted(map(float, shown)) == pytest.approx(sorted(expected), rel=1e-5)


def test_the_numbers_of_a_key_are_in_one_line_with_those_of_all_seeds(folder, page):
    seeds = files.read_json(folder / "mine" / "scores.json")["datasets"]["dolly"]["seeds"]
    row = numbers(page)["datasets · dolly · seeds · rouge_l"]
    assert row["mine"] == ", ".join(f"{found['rouge_l']:.6g}" for found in seeds.values())


def test_pass_at_k_and_latencies_of_the_first_token_are_in_the_tables_of_scores_and_speed(folder, page):
    scores = files.read_json(folder / "mine" / "scores.json")
    cells = page.table("exact match pass@2", "distinct-1")["vicuna, mine"]
    assert cells["exact match pass@5"] == f"{scores['datasets']['vicuna']['pass_at']['exact_match']['5']:.4g}"
    speed = page.table("first token p50, s", "first token p95, s")["mine"]
    assert speed["first token p50, s"].startswith(f"{scores['latency']['first_token_p50_s']:.3f} (")
    assert speed["first token p95, s"] == "1.500 (1.00×)"


# --- intervals ----------------------------------------------------------------------------------------------------------


def exact(folder: Path, dataset: str) -> np.ndarray:
    """Exact match of each prompt, as the mean over evaluation seeds."""
    paths = sorted((folder / "responses").glob(f"{dataset}-seed*.jsonl"))
    return np.mean([[line["exact_match"] for line in files.read_lines(path)] for path in paths], axis=0)


def shown(differences: np.ndarray) -> str:
    found = paired_bootstrap([differences[None, :]])
    middle, lower, upper = (f"{100 * each:+.2f}".replace("-", "−") for each in (found.difference, found.lower, found.upper))
    assert lower != upper
    return f"{middle} [{lower}, {upper}]"


@pytest.mark.parametrize("dataset", ["dolly", "vicuna"])
def test_metrics_other_than_the_primary_one_have_intervals(folder, page, dataset):
    tables = [table for table in page.tables if table and table[0][0] == "Model" and "exact match" in table[0]]
    rows = {row[0]: row for row in tables[("dolly", "vicuna").index(dataset)]}
    for label, part in MODELS.items():
        order = sorted(range(PROMPTS), key=str)  # that of the ids, in which prompts are resampled
        scores, theirs = (exact(each, dataset)[order] for each in (folder / part, folder / "sft"))
        text = f"{100 * scores.mean():.1f} %"
        gap = "" if label == "plain-sft" else f" {shown(scores - theirs)}"
        assert rows[label][tables[0][0].index("exact match")] == text + gap


def test_metrics_other_than_the_primary_one_have_intervals_in_each_category(folder, page):
    tables = [table for table in page.tables if table and table[0][1:2] == ["prompts"]]
    for dataset, table in zip(("dolly", "vicuna"), tables, strict=True):
        ours, theirs = exact(folder / "mine", dataset), exact(folder / "sft", dataset)
        for row in table[1:]:
            chosen = [i for i in range(PROMPTS) if ("open_qa", "closed_qa", "summarization")[i % 3] == row[0]]
            text = f"{100 * ours[chosen].mean():.1f} % {shown((ours - theirs)[chosen])}"
            assert row[table[0].index("exact match")] == text


# --- decodings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", ["dolly", "vicuna"])
def test_each_decoding_has_all_models_and_the_difference_of_the_student_to_the_baseline(folder, page, dataset):
    found = {label: read_dataset(folder / part, dataset) for label, part in MODELS.items() if label != "before training"}
    tables = [
        table[1:]
        for table in page.tables
        if table and table[0][:4] == ["Decoding", "model", "ROUGE-L", "difference to plain-sft"]
    ]
    rows = tables[("dolly", "vicuna").index(dataset)]
    assert [row[:2] for row in rows] == [[title, label] for title in ("main (T 1)", "greedy", "T 0.8") for label in found]
    for title, label, score, difference, *_ in rows:
        values = {name: of_decoding(about, title) for name, about in found.items()}
        assert score == f"{np.mean(values[label]):.2f} ± {np.std(values[label], ddof=1):.2f}"
        gap = f"{np.mean(values['mine']) - np.mean(values['plain-sft']):+.2f}".replace("-", "−")
        assert difference == (gap if label == "mine" else "–")


def of_decoding(dataset: dict[str, Any], title: str) -> list[float]:
    names = {"greedy": "greedy", "T 0.8": "T0.8"}
    seeds = dataset["decodings"][names[title]]["seeds"] if title in names else dataset["seeds"]
    return [seed["rouge_l"] for seed in seeds.values()]


def read_dataset(folder: Path, dataset: str) -> dict[str, Any]:
    return files.read_json(folder / "scores.json")["datasets"][dataset]
