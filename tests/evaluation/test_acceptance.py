"""Acceptance of a draft model: the definition, by float64 oracles, and the scores of runs and evaluations."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from redistill.cli.main import main
from redistill.config.run import decode_run
from redistill.data.tokenize import tokenize_training
from redistill.errors import ConfigError
from redistill.evaluation.acceptance import accepted
from redistill.evaluation.gold import teacher_forced
from redistill.evaluation.scores import EvaluationConfig
from redistill.records import ACCEPTANCE, PROPOSALS
from redistill.reports.compare import build_comparison
from redistill.reports.report import build_report
from redistill.runs.run import distill
from redistill.storage import files
from tests.evaluation.test_evaluation import TOKENS, network, records, run, teacher
from tests.worlds import LLAMA, tiny_run, write_model

LEAST = {"name": "r", "method": "kd", "student": {"model": "s"}, "teacher": {"model": "t"}}


def in_answers(sequence: list[int], position: list[int]) -> list[list[int]]:
    """The rows of each answer: adjacent positions of one sequence."""
    answers: list[list[int]] = []
    for row, (number, place) in enumerate(zip(sequence, position, strict=True)):
        if row and number == sequence[row - 1] and place == position[row - 1] + 1:
            answers[-1].append(row)
        else:
            answers.append([row])
    return answers


@pytest.mark.parametrize("seed", range(5))
def test_products_and_lengths_are_those_of_their_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sequence = np.sort(rng.integers(0, 3, 25)).tolist()
    position = np.cumsum(rng.choice([1, 1, 1, 4], 25)).tolist()
    alpha = rng.uniform(0, 1, 25)
    found = accepted(torch.from_numpy(alpha), torch.tensor(sequence), torch.tensor(position))
    assert found.keys() == set(ACCEPTANCE)
    for answer in in_answers(sequence, position):
        for index, row in enumerate(answer):
            products = [np.prod(alpha[answer[index : index + i]]) if index + i <= len(answer) else 0.0 for i in range(1, 9)]
            for i in range(1, PROPOSALS + 1):
                assert found[f"acceptance_{i}"][row] == pytest.approx(products[i - 1], abs=1e-8)
                assert found[f"accepted_length_{i}"][row] == pytest.approx(sum(products[:i]), abs=1e-8)


def test_equal_models_accept_everything_up_to_the_end_and_disjoint_ones_nothing() -> None:
    place = torch.arange(12)
    full = accepted(torch.ones(12), torch.zeros(12), place)
    assert full["accepted_length_8"].tolist() == [8.0] * 5 + [7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
    assert all(not value.any() for value in accepted(torch.zeros(12), torch.zeros(12), place).values())
    assert accepted(torch.ones(0), torch.zeros(0), torch.zeros(0))["acceptance_8"].shape == (0,)


@pytest.mark.parametrize("batch_size", [1, 16])
def test_scores_are_means_over_the_targets_of_the_gold_answers(tokenizer: Any, batch_size: int) -> None:
    examples, _ = tokenize_training(records(), tokenizer, TOKENS, seed=0)
    student, other = network(0), network(1)
    found = teacher_forced(student, teacher(), examples, batch_size=batch_size, extra=["acceptance"])
    alphas, lengths = [], {k: [] for k in (1, 4, 8)}
    for example in examples:
        logits = [m.double()(torch.tensor([example.token_ids])).logits[0].detach() for m in (student, other)]
        q, p = (torch.softmax(each, -1).numpy() for each in logits)
        alpha = [np.minimum(p[i - 1], q[i - 1]).sum() for i in np.flatnonzero(example.supervised)]
        alphas += alpha
        for k, sums in lengths.items():
            sums += [np.cumprod(alpha[start : start + k]).sum() for start in range(len(alpha))]
    assert found["acceptance"] == found["acceptance_1"] == pytest.approx(np.mean(alphas), rel=1e-5)
    for k, sums in lengths.items():
        assert found[f"accepted_length_{k}"] == pytest.approx(np.mean(sums), rel=1e-5)
    plain = teacher_forced(student.float(), teacher(), examples, batch_size=batch_size)
    assert plain.keys() == {"cross_entropy", "kl", "agreement"}
    assert teacher_forced(student, None, examples, batch_size=batch_size, extra=["acceptance"]).keys() == {"cross_entropy"}


def test_acceptance_is_added_to_a_finished_evaluation(tokenizer: Any, tmp_path: Path) -> None:
    before = run(tokenizer, tmp_path, teacher=teacher())["datasets"]["dolly"]
    config = EvaluationConfig(seeds=(10, 20), batch_size=2, teacher_forced=("acceptance",))
    after = run(tokenizer, tmp_path, teacher=teacher(), config=config)["datasets"]["dolly"]
    assert after["teacher_forced"].keys() == {*before["teacher_forced"], *ACCEPTANCE} and after["seeds"] == before["seeds"]


ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "no teacher": (
        {"method": "sft", "teacher": None},
        "acceptance needs teacher logits of the whole vocabulary, and there is no",
    ),
    "served": (
        {"teacher": {"kind": "served", "url": "http://127.0.0.1:8000/v1", "model": "t"}},
        "acceptance needs teacher logits of the whole vocabulary, and the teacher does not provide them; use a local teacher",
    ),
    "twice": ({"evaluation": {"teacher_forced": ["acceptance", "acceptance"]}}, "acceptance is listed 2 times"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_acceptance_that_cannot_be_computed_is_rejected_when_the_recipe_is_read(name: str) -> None:
    changes, message = ERRORS[name]
    with pytest.raises(ConfigError, match=f"evaluation.teacher_forced: {message}"):
        decode_run(LEAST | {"evaluation": {"teacher_forced": ["acceptance"]}} | changes, "test")


def test_the_best_checkpoint_can_be_chosen_by_acceptance_only_if_it_is_computed() -> None:
    with pytest.raises(ConfigError, match=r"training\.choose_by = 'acceptance': .*; add it to evaluation\.teacher_forced"):
        decode_run(LEAST | {"training": {"choose_by": "acceptance"}}, "test")
    draft = decode_run(LEAST | {"method": "draft"}, "test")
    assert (draft.training.choose_by, draft.evaluation.teacher_forced) == ("acceptance", ("acceptance",))
    other = LEAST | {"method": "draft", "training": {"choose_by": "rouge_l"}, "evaluation": {"teacher_forced": []}}
    assert decode_run(other, "test").training.choose_by == "rouge_l"


def test_a_draft_run_keeps_its_best_acceptance_and_shows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"updates": 4, "batch_size": 4, "evaluate_every": 1}
    spread = {**LLAMA, "initializer_range": 0.15}  # two random models that differ
    draft = tiny_run(tmp_path, "draft", config=spread, training=settings, optimiser={"learning_rate": 3e-2})
    distill(draft)
    lines = [line for line in files.read_lines(draft.folder / "metrics.jsonl") if line["kind"] == "validation"]
    best = max(lines, key=lambda line: line["acceptance"])
    assert len({line["acceptance"] for line in lines}) == len(lines) == 5
    kept = {path.name for path in (draft.folder / "checkpoints").glob("step-*")}
    assert kept == {f"step-{best['step']}", "step-4"} and 0 < best["acceptance"] < 0.9
    found = files.read_json(draft.folder / "scores.json")["datasets"]["toy"]["teacher_forced"]
    (table,) = [table for table in build_comparison([draft.folder]).tables if table.key == "acceptance"]
    shown = f"{found['accepted_length_8']:.2f}"
    assert [cell.text for cell in table.lines[0].cells][::8] == [f"{100 * found['acceptance']:.1f} %", shown]
    assert f"<td>{shown}</td>" in build_report(draft.folder).read_text(encoding="utf-8")

    arguments = ["evaluate", str(draft.folder), "--data", f"toy={tmp_path / 'test.jsonl'}", "--seeds", "10", "--limit", "2"]
    teacher_at = str(tmp_path / "teacher")
    assert main([*arguments, "--draft-for", teacher_at, "--out", str(tmp_path / "scores")]) == 0
    assert "expected accepted tokens of k proposed tokens" in capsys.readouterr().out
    assert files.read_json(tmp_path / "scores" / "scores.json")["datasets"]["toy"]["teacher_forced"].keys() >= set(ACCEPTANCE)
    forced = [files.read_json(tmp_path / "scores" / "scores.json")["datasets"]["toy"]["teacher_forced"]]
    other = write_model(tmp_path / "other", spread, 7)
    assert main([*arguments, "--draft-for", str(other), "--out", str(tmp_path / "scores")]) == 0
    forced.append(files.read_json(tmp_path / "scores" / "scores.json")["datasets"]["toy"]["teacher_forced"])
    assert forced[0]["kl"] != forced[1]["kl"], "scores with another teacher are computed again"
    assert main([*arguments, "--draft-for", str(draft.folder), "--out", str(tmp_path / "scores")]) == 0
    forced.append(files.read_json(tmp_path / "scores" / "scores.json")["datasets"]["toy"]["teacher_forced"])
    assert forced[2]["kl"] == pytest.approx(0, abs=1e-6), "the student of a run folder is the teacher"
    assert main([*arguments, "--draft-for", teacher_at, "--teacher", teacher_at, "--out", str(tmp_path / "both")]) == 2
    assert "--draft-for names the teacher; remove --teacher" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--draft-for", "--teacher", "--engine"])
def test_an_empty_option_is_an_error(tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "model", "--data", "toy=x.jsonl", option, "", "--out", str(tmp_path / "scores")]) == 2
    assert f"{option} is empty; give a value, or leave the option out" in capsys.readouterr().err
