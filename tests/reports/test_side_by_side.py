"""Responses of all methods to the same prompts: which are read, in which order, and how many."""

import itertools
import json
from pathlib import Path

import pytest

from redistill.reports.lineup import read_lineup
from redistill.reports.side_by_side import SideBySide, side_by_side
from tests.reports.fabricated import write_lines, write_method

SCORES = {
    "sft": {"dolly": {10: [10.0, 50.0, 30.0], 20: [0.0, 0.0, 0.0]}},
    "kd": {"dolly": {10: [15.0, 10.0, 30.0], 20: [0.0, 0.0, 0.0]}},
}


def responses(folders: list[Path], **limits: int) -> SideBySide:
    return side_by_side(read_lineup(folders), **limits)


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [write_method(tmp_path / method, scores, method) for method, scores in SCORES.items()]


def test_prompts_are_ordered_by_the_disagreement_of_the_methods(runs):
    found = responses(runs)
    assert [(prompt.id, prompt.disagreement) for prompt in found.prompts] == [
        ("dolly:1", 40.0),
        ("dolly:0", 5.0),
        ("dolly:2", 0.0),
    ]
    assert (found.num_prompts, found.methods) == (3, ["sft", "kd"])


def test_every_response_is_that_of_its_file_for_the_lowest_seeds(runs, tmp_path):
    later = write_method(tmp_path / "later", {"dolly": {10: [1.0] * 3, 20: [1.0] * 3}}, "sft", seed=20)
    for prompt in responses([*runs, later]).prompts:
        assert [(each.model, each.role) for each in prompt.responses] == [
            ("teacher", "teacher"),
            ("sft", "baseline"),
            ("kd", "student"),
        ]
        for each, folder in zip(prompt.responses, (runs[0] / "teacher", *runs), strict=True):
            lines = map(json.loads, (folder / "responses" / "dolly-seed10.jsonl").read_text().splitlines())
            line = next(line for line in lines if line["id"] == prompt.id)
            assert (each.text, each.score, each.truncated) == (line["response"], line["rouge_l"], not line["finished"])
            assert (prompt.prompt, prompt.reference) == (line["prompt"], line["references"][0])


def test_a_response_to_another_prompt_with_the_same_id_is_left_out(runs, tmp_path):
    other = write_method(tmp_path / "other", SCORES["kd"], "mgsr", text="other")
    assert {each.model for prompt in responses([*runs, other]).prompts for each in prompt.responses} == {"teacher", "sft", "kd"}


@pytest.mark.parametrize("letter", ["a", "<", "語"])
def test_prompts_are_left_out_evenly_above_the_size_limit(letter, tmp_path):
    scores = {"dolly": {10: [float(i) for i in range(50)]}}
    zeros = {"dolly": {10: [0.0] * 50}}
    folders = [
        write_method(tmp_path / method, found, method, text=letter * 500) for method, found in (("sft", zeros), ("kd", scores))
    ]
    everything = responses(folders)
    total = sum(prompt.num_bytes for prompt in everything.prompts)
    some = responses(folders, max_bytes=total // 5)
    assert len(everything.prompts) == 50 and some.num_prompts == 50
    assert 9 <= len(some.prompts) <= 10 and sum(prompt.num_bytes for prompt in some.prompts) <= total // 5
    ranks = [everything.prompts.index(prompt) for prompt in some.prompts]
    assert (ranks[0], ranks[-1]) == (0, 49) and {5, 6}.issuperset(b - a for a, b in itertools.pairwise(ranks))
    assert some == responses(folders, max_bytes=total // 5)


def test_fields_of_other_types_are_shown_as_text_or_left_out(runs):
    lines = [{"id": 7, "prompt": None, "response": ["a"], "references": "one", "rouge_l": "high"}]
    for folder in (*runs, runs[0] / "teacher"):
        write_lines(folder / "responses" / "dolly-seed10.jsonl", lines)
        write_lines(folder / "responses" / "dolly-seed20.jsonl", lines)
    (prompt,) = responses(runs).prompts
    assert (prompt.id, prompt.prompt, prompt.reference, prompt.disagreement) == ("7", "", None, None)
    assert [(each.text, each.score) for each in prompt.responses] == 3 * [("['a']", None)]
