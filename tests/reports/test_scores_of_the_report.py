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
from tests.reports.fabricated import write_json, write_lines, write_run
from tests.reports.page import Page

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
    for label, part in {
        "teacher": "mine/teacher",
        "before training": "mine/before",
        "plain-sft": "sft",
        "mine": "mine",
    }.items():
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
