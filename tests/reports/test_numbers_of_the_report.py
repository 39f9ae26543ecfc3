"""Numbers on the report equal those of the files of the run, to the printed digit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from redistill.reports.inference import contrast
from redistill.reports.report import build_report
from redistill.reports.statistics import paired_bootstrap, paired_differences
from tests.reports.complete import DECODINGS, write_complete_run
from tests.reports.fabricated import PROMPTS
from tests.reports.page import Page

CATEGORIES = ("open_qa", "closed_qa", "summarization")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("numbers")
    write_complete_run(folder / "mine", "mine")
    write_complete_run(folder / "sft", "plain-sft", role="baseline")
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page(build_report(folder / "mine", [folder / "sft"]).read_text(encoding="utf-8"))


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def lines(folder: Path, dataset: str) -> list[list[dict]]:
    """The answers of each evaluation seed."""
    paths = sorted((folder / "responses").glob(f"{dataset}-seed*.jsonl"))
    return [[json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] for path in paths]


MODELS = {"teacher": "mine/teacher", "before training": "mine/before", "plain-sft": "sft", "mine": "mine"}


@pytest.mark.parametrize("dataset", ["dolly", "vicuna"])
def test_scores_of_a_data_set(folder, page, dataset):
    (found,) = [
        block for block in page.tables if block[0][-1] == "agreement" and f"{mean(folder / 'mine', dataset):.2f}" in str(block)
    ]
    for label, part in MODELS.items():
        (cells,) = [row for row in found if row[0] == label]
        about = read(folder / part / "scores.json")["datasets"][dataset]
        forced, printed = about["teacher_forced"], printed_scores(about["seeds"])
        assert [cells[1], *cells[6:9]] == [printed[0], *printed[2:]]
        assert cells[2] == ("–" if label == "plain-sft" else printed_difference(folder / part, folder / "sft", dataset))
        assert cells[5].startswith(printed[1])
        assert cells[9:11] == [f"{forced[name]:.3f}" for name in ("cross_entropy", "kl")]
        assert cells[11] == f"{100 * forced['agreement']:.1f} %"


def printed_scores(seeds: dict[str, Any]) -> list[str]:
    """Mean and deviation of ROUGE-L, and means of exact match, length, end tokens and distinct-2, as a table prints them."""
    rouge, exact, length, ended, distinct = (
        [seed[name] for seed in seeds.values()]
        for name in ("rouge_l", "exact_match", "length_tokens", "eos_rate", "distinct_2")
    )
    parts = [f"{100 * np.mean(exact):.1f} %", f"{np.mean(length):.1f}", f"{100 * np.mean(ended):.1f} %"]
    return [f"{np.mean(rouge):.2f} ± {np.std(rouge, ddof=1):.2f}", *parts, f"{np.mean(distinct):.3f}"]


def printed_difference(folder: Path, reference: Path, dataset: str) -> str:
    """The difference of two models in ROUGE-L with its interval, from the files of the answers."""
    own, other = (
        {each[0]["id"]: float(np.mean([line["rouge_l"] for line in each])) for each in zip(*lines(part, dataset), strict=True)}
        for part in (folder, reference)
    )
    found = paired_bootstrap([paired_differences([(own, other)])])
    assert found.lower < found.difference - 0.1 and found.difference + 0.1 < found.upper
    text = f"{found.difference:+.2f} [{found.lower:+.2f}, {found.upper:+.2f}]"
    return text.replace("-", "−")


@pytest.mark.parametrize("dataset", ["dolly", "vicuna"])
def test_scores_of_further_decodings(folder, page, dataset):
    about = read(folder / "mine" / "scores.json")["datasets"][dataset]
    rows = [row for table in page.tables if "Decoding" in table[0] for row in table[1:]]
    for name in DECODINGS:
        wanted = {*printed_scores(about["decodings"][name]["seeds"]), "2"}
        assert any(wanted <= set(row) for row in rows), name


@pytest.mark.parametrize("dataset", ["dolly", "vicuna"])
def test_each_difference_has_its_detectable_size_and_says_what_it_is_about(folder, page, dataset):
    (own, other) = (
        {each[0]["id"]: float(np.mean([line["rouge_l"] for line in each])) for each in zip(*lines(part, dataset), strict=True)}
        for part in (folder / "mine", folder / "sft")
    )
    found = contrast([paired_differences([(own, other)])], 1, 1)
    rows = [dict(zip(table[0], row, strict=True)) for table in page.tables if "detectable" in table[0] for row in table[1:]]
    wanted = printed_difference(folder / "mine", folder / "sft", dataset)
    (row,) = (row for row in rows if wanted in row.values())
    assert row["detectable"] == f"{found.detectable:.2f}" and row["about"] == "these students"


def mean(folder: Path, dataset: str) -> float:
    return float(np.mean([seed["rouge_l"] for seed in read(folder / "scores.json")["datasets"][dataset]["seeds"].values()]))


def test_scores_by_category(folder, page):
    tables = [table for table in page.tables if table and table[0][1:2] == ["prompts"]]
    assert len(tables) == 2
    for dataset, table in zip(("dolly", "vicuna"), tables, strict=True):
        for label, part in MODELS.items():
            column = table[0].index(label)
            for row in table[1:]:
                chosen = [each for each in range(PROMPTS) if CATEGORIES[each % 3] == row[0]]
                scores = [[seed[each]["rouge_l"] for each in chosen] for seed in lines(folder / part, dataset)]
                assert (row[1], row[column]) == (str(len(chosen)), f"{np.mean(scores):.2f}")


def test_size_speed_latency_and_memory(folder, page):
    table = page.table("latency p50, s", "peak memory")
    teacher = np.mean([mean(folder / "mine/teacher", dataset) for dataset in ("dolly", "vicuna")])
    of_teacher = read(folder / "mine/teacher" / "scores.json")
    for label, part in MODELS.items():
        scores = read(folder / part / "scores.json")
        quality = np.mean([mean(folder / part, dataset) for dataset in ("dolly", "vicuna")])
        cells = table[label]
        assert cells["ROUGE-L"] == f"{quality:.2f}" and cells["of the teacher"] == f"{100 * quality / teacher:.1f} %"
        shown = {
            "tokens/s": (f"{scores['tokens_per_s']:.3g}", scores["tokens_per_s"] / of_teacher["tokens_per_s"]),
            "latency p50, s": (
                f"{scores['latency']['p50_s']:.3f}",
                scores["latency"]["p50_s"] / of_teacher["latency"]["p50_s"],
            ),
            "latency p95, s": (
                f"{scores['latency']['p95_s']:.3f}",
                scores["latency"]["p95_s"] / of_teacher["latency"]["p95_s"],
            ),
            "peak memory": (f"{scores['peak_bytes'] / 1e9:.3g} GB", scores["peak_bytes"] / of_teacher["peak_bytes"]),
        }
        for column, (text, ratio) in shown.items():
            # The baseline was written without a teacher, so that its figures have no ratio.
            has_ratio = label in ("mine", "before training")
            assert cells[column] == (f"{text} ({ratio:.2f}×)" if has_ratio else text)
    assert table["mine"]["parameters"] == "120 M (0.08×)" and table["teacher"]["size"] == "3 GB"


def test_cost_of_training(folder, page):
    cost, cells = read(folder / "mine" / "run.json")["cost"], page.table("updates", "peak memory")["mine"]
    assert cells["seconds"] == f"{cost['seconds']:,.0f}" and cells["updates"] == f"{cost['updates']}"
    assert cells["trained tokens"] == f"{cost['trained_tokens'] / 1e3:.3g} k"
    assert cells["generated tokens"] == f"{cost['generated_tokens'] / 1e3:.3g} k"
    assert cells["peak memory"] == f"{cost['peak_bytes'] / 1e9:.3g} GB"


def test_the_verdict(folder, page):
    ours, theirs = (np.mean([mean(folder / part, each) for each in ("dolly", "vicuna")]) for part in ("mine", "mine/teacher"))
    scores = [read(folder / part / "scores.json") for part in ("mine", "mine/teacher")]
    size, speed = (scores[0][name] / scores[1][name] for name in ("parameters", "tokens_per_s"))
    latency = scores[0]["latency"]["p50_s"] / scores[1]["latency"]["p50_s"]
    assert page.answer("quality \\(ROUGE-L\\)") == (
        f"mine has {100 * ours / theirs:.0f} % of the teacher's quality (ROUGE-L) at {100 * size:.0f} % of its size, "
        f"{speed:.1f} times its throughput in batches and {latency:.2f} times its latency (median of single answers)."
    )


def test_scores_of_answers(folder, page):
    """Every answer of the lowest evaluation seed is on the page with its score."""
    shown = " ".join(page.blocks)
    for part in MODELS.values():
        for dataset in ("dolly", "vicuna"):
            for line in lines(folder / part, dataset)[0]:
                assert line["response"].strip() in shown and f"ROUGE-L {line['rouge_l']:.1f}" in shown


def test_corrections(folder, page):
    with (folder / "mine" / "revisions.jsonl").open() as file:
        logged = [json.loads(line) for line in file]
    assert page.answer("of 30 logged corrections").startswith("8 of 30 ")
    heads = [block for block in page.blocks if block.startswith("update ") and "disagreement" in block]
    assert heads[0].startswith(f"update {logged[0]['step']} · sample {logged[0]['sample']}")
    assert f"token {logged[0]['position']} · disagreement {logged[0]['kl']:.2f} nats" in heads[0]
