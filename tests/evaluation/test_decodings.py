"""Decodings: further answers of the same student, which change neither the main answers nor an older folder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from redistill.errors import ConfigError
from redistill.evaluation.decodings import Decoding
from redistill.evaluation.scores import EvaluationConfig
from redistill.reports.compare import build_comparison
from redistill.reports.report import build_report
from redistill.runs.opened import notes
from redistill.runs.run import distill
from redistill.storage import files
from tests.evaluation.test_evaluation import Interrupted, network, responses, run, stop_after
from tests.worlds import tiny_run

SEEDS = (10, 20, 30)
STANDARD = tuple(Decoding(**fields) for fields in ({}, {"temperature": 0.8}, {"temperature": 0.0}, {"top_p": 0.9}))
PLAIN, WITH = EvaluationConfig(seeds=SEEDS, batch_size=2), EvaluationConfig(seeds=SEEDS, batch_size=2, decodings=STANDARD)


def test_decodings_have_the_scores_of_an_evaluation_whose_main_decoding_they_are(tokenizer: Any, tmp_path: Path) -> None:
    scores = run(tokenizer, tmp_path / "all", config=WITH)["datasets"]["dolly"]
    assert list(scores["decodings"]) == ["T1", "T0.8", "greedy", "T1-top_p0.9"]
    for decoding in STANDARD:
        seeds = (10,) if decoding.temperature == 0 else (10, 20)
        alone = EvaluationConfig(seeds=seeds, batch_size=2, temperature=decoding.temperature, top_p=decoding.top_p)
        expected = run(tokenizer, tmp_path / decoding.name, config=alone)["datasets"]["dolly"]["seeds"]
        found = scores["decodings"][decoding.name]
        assert found["seeds"] == expected
        assert found["sampling"] == {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0}
    assert scores["decodings"]["T0.8"]["seeds"] != scores["decodings"]["T1"]["seeds"]


def test_the_main_answers_and_scores_do_not_depend_on_decodings(tokenizer: Any, tmp_path: Path) -> None:
    plain = run(tokenizer, tmp_path / "plain", config=PLAIN)
    scores = run(tokenizer, tmp_path / "with", config=WITH)
    assert scores["settings"] == plain["settings"]
    assert {name: found for name, found in scores["datasets"]["dolly"].items() if name != "decodings"} == plain["datasets"][
        "dolly"
    ]
    both = responses(tmp_path / "with")
    assert {name: text for name, text in both.items() if "@" not in name} == responses(tmp_path / "plain")
    assert sorted(name for name in both if "@" in name) == [
        *(f"dolly@T0.8-seed{seed}.jsonl" for seed in (10, 20)),
        *(f"dolly@T1-top_p0.9-seed{seed}.jsonl" for seed in (10, 20)),
        "dolly@greedy-seed10.jsonl",
    ]


@pytest.mark.parametrize("answers", [16, 22, 31])
def test_decodings_resume_and_are_added_to_a_finished_evaluation(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: int
) -> None:
    straight = run(tokenizer, tmp_path / "straight", config=WITH)
    run(tokenizer, tmp_path / "later", config=PLAIN)
    with pytest.raises(Interrupted):
        run(tokenizer, tmp_path / "later", config=WITH, progress=stop_after(answers))
    resumed = run(tokenizer, tmp_path / "later", config=WITH)
    assert resumed["datasets"] == straight["datasets"]
    assert responses(tmp_path / "later") == responses(tmp_path / "straight")
    model = network()
    monkeypatch.setattr(model.transformer, "forward", None)  # nothing is computed again, with or without decodings
    assert run(tokenizer, tmp_path / "later", model, config=WITH) == resumed
    assert run(tokenizer, tmp_path / "later", model, config=PLAIN) == resumed


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": 1e-300}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_k": -1}, "top_k"),
    ],
)
def test_a_value_out_of_range_is_rejected(fields: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message} = .*: must"):
        Decoding(**fields)


def test_two_equal_decodings_are_rejected() -> None:
    with pytest.raises(ConfigError, match=r"decodings: T0\.8 is listed 2 times; list each decoding once"):
        EvaluationConfig(decodings=(Decoding(temperature=0.8),) * 2)


def test_a_finished_run_is_scored_with_decodings_and_shown_side_by_side(tmp_path: Path) -> None:
    settings = {"evaluation": {"seeds": [10, 20], "compare": ["teacher"]}, "training": {"updates": 1, "batch_size": 4}}
    first = tiny_run(tmp_path, "sft", **settings)
    distill(first)
    model, before = (first.folder / "model" / "model.safetensors").stat().st_mtime_ns, responses(first.folder)
    settings["evaluation"]["decodings"] = [{"temperature": 0.8}, {"temperature": 0}]
    distill(tiny_run(tmp_path, "sft", **settings))
    assert (first.folder / "model" / "model.safetensors").stat().st_mtime_ns == model
    assert {name: text for name, text in responses(first.folder).items() if "@" not in name} == before
    found = files.read_json(first.folder / "scores.json")["datasets"]["toy"]["decodings"]
    assert list(found) == ["T0.8", "greedy"] and list(found["greedy"]["seeds"]) == ["10"]
    assert "decodings" not in files.read_json(first.folder / "teacher" / "scores.json")["datasets"]["toy"]

    other = tiny_run(
        tmp_path, "sft", out="other", name="other", **(settings | {"evaluation": {"seeds": [10, 20], "compare": []}})
    )
    distill(other)
    comparison = build_comparison(
        [first.folder, other.folder], [tmp_path / f"c{end}" for end in (".md", ".html", ".tex", ".csv")]
    )
    (table,) = [table for table in comparison.tables if table.key == "decoding-toy"]
    assert table.columns == ["", "main (T 1)", "T 0.8", "greedy"]
    expected = sum(scores["rouge_l"] for scores in found["T0.8"]["seeds"].values()) / 2
    with_decodings, without = table.lines
    assert with_decodings.cells[1].text == f"{expected:.2f}" and [cell.text for cell in without.cells[1:]] == ["–", "–"]
    (line,) = [each for each in comparison.records if each.get("decoding") == "T 0.8"]
    assert line["rouge_l"] == pytest.approx(expected, abs=1e-12)
    page = build_report(first.folder).read_text(encoding="utf-8")
    assert '<th scope="row">greedy</th>' in page and f"<td>{expected:.2f}" in page


@pytest.mark.parametrize(
    ("seeds", "decodings", "sampled"), [((10,), STANDARD, "T1, T0.8, T1-top_p0.9"), ((10, 20), STANDARD, "")]
)
def test_decodings_that_sample_with_one_seed_are_reported(seeds: Any, decodings: Any, sampled: str, tmp_path: Path) -> None:
    evaluation = EvaluationConfig(seeds=seeds, decodings=decodings)
    found = [line for line in notes(replace(tiny_run(tmp_path), evaluation=evaluation)) if "evaluation.decodings" in line]
    expected = f"evaluation.decodings: {sampled} are sampled with 1 seed; set evaluation.seeds to at least 2 seeds"
    assert found == ([expected] if sampled else [])
