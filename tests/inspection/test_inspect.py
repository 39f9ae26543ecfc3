"""`redistill inspect`: examples, logged and new corrections, DAC-KL intervals, answers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from redistill.cli.main import main
from redistill.config.run import encode_run
from redistill.runs.run import train_student
from redistill.runs.windows import NUM_CLASSES, NUM_WINDOWS
from redistill.storage import files
from tests.worlds import tiny_run

UPDATES = 4


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run of MGSR with a checkpoint of every update."""
    folder = tmp_path_factory.mktemp("inspected")
    config = tiny_run(folder, training={"updates": UPDATES, "batch_size": 4, "log_every": 1, "save_every": 1, "keep": 9})
    (folder / "recipe.yaml").write_text(yaml.safe_dump(encode_run(config)), encoding="utf-8")
    train_student(config)
    return config.folder


@pytest.fixture
def inspected(capsys: pytest.CaptureFixture[str]) -> Any:
    """Function that runs `redistill inspect`, and returns its JSON document."""

    def call(*arguments: object) -> Mapping[str, Any]:
        assert main(["inspect", *map(str, arguments), "--json"]) == 0, capsys.readouterr().err
        found: Mapping[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return call


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --- revisions ----------------------------------------------------------------------------------------------------------


def test_the_logged_revisions_of_every_step_are_those_of_revisions_jsonl(run: Path, inspected: Any) -> None:
    lines = [json.loads(text) for text in (run / "revisions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {line["step"] for line in lines} == set(range(1, UPDATES + 1))
    for step in range(1, UPDATES + 1):
        found = inspected("revision", run, "--step", step)
        assert found == {"schema": 1, "step": step, "revisions": [line for line in lines if line["step"] == step]}


@pytest.mark.parametrize("step", range(UPDATES))
def test_live_revisions_from_a_checkpoint_are_those_that_the_next_update_logged(run: Path, inspected: Any, step: int) -> None:
    live = inspected("revision", run, "--live", "--checkpoint", step) if step else inspected("revision", recipe(run), "--live")
    logged = inspected("revision", run, "--step", step + 1)["revisions"]
    found = {line["sample"]: line for draft in live["drafts"] for line in draft["revisions"]}
    assert live["step"] == step + 1 and len(live["drafts"]) == 4 and logged
    for line in logged:  # of the prompts whose gold answer the update does not use
        assert found[line["sample"]] == {**line, "kl": pytest.approx(line["kl"], rel=1e-4)}


def recipe(run: Path) -> Path:
    return run.parent / "recipe.yaml"


def test_the_error_is_the_position_of_largest_disagreement_where_the_tokens_differ(run: Path, inspected: Any) -> None:
    live = inspected("revision", run, "--live", "--prompts", 6)
    assert len(live["drafts"]) == 6 and live["student"] == f"checkpoint step-{UPDATES}"
    for draft in live["drafts"]:
        scores = [token["score"] if token["token_id"] != token["teacher_id"] else -1 for token in draft["tokens"]]
        (line,) = draft["revisions"]
        assert line["position"] == scores.index(max(scores)) and line["kl"] == max(scores)
        assert line["teacher_token"] == draft["tokens"][line["position"]]["teacher"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--step", "99"], "--step 99: no correction is logged; choose one of 1, 2, 3, 4"),
        ([], "needs either --step N"),
        (["--live", "--step", "1"], "needs either --step N"),
        (["--step", "1", "--prompts", "2"], "--prompts and --checkpoint need --live"),
        (["--live", "--checkpoint", "77"], "has no step-77"),
        (["--live", "--prompts", "1000"], "there are 24 training examples"),
    ],
)
def test_a_step_or_checkpoint_that_does_not_exist_is_one_line(
    run: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", "revision", str(run), *arguments]) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("redistill: ") and message in line


def test_a_run_without_corrections_says_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "revision", str(run.parent), "--step", "1"]) == 2
    assert "has no revisions.jsonl" in capsys.readouterr().err


# --- samples ------------------------------------------------------------------------------------------------------------


def test_a_sample_has_the_tokens_targets_and_spans_of_training(run: Path, inspected: Any) -> None:
    found = inspected("sample", run, "--row", 5)
    again = inspected("sample", recipe(run), "--row", 5)
    targets = [token for token in found["tokens"] if token["target"] is not None]
    assert found == again
    assert [token["target"] for token in targets] == list(range(len(targets)))
    answer = "".join(token["text"] for token in targets)
    assert answer.startswith("The cow number 5 is sleeping in the barn.")
    assert found["spans"] and any(span["is_used"] for span in found["spans"])
    for span in found["spans"]:
        assert span["text"] == "".join(token["text"] for token in targets[span["start"] : span["stop"]])


def test_a_sample_of_a_method_without_span_loss_has_no_spans(run: Path, inspected: Any) -> None:
    assert inspected("sample", recipe(run), "method=kd")["spans"] is None


def test_a_row_that_does_not_exist_is_rejected(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "sample", str(run), "--row", "24"]) == 2
    assert "row 24: there are 24 training examples" in capsys.readouterr().err


# --- clip ---------------------------------------------------------------------------------------------------------------


def test_the_kept_classes_of_a_fixed_interval_are_those_whose_score_lies_in_it(run: Path, inspected: Any) -> None:
    divergence = "objective.divergence={kind: dac_kl, fixed_interval: [0.003, 0.9]}"
    found = inspected("clip", recipe(run), divergence, "--row", 2, "--position", 3, "--top", 1000)
    classes = found["classes"]
    arg_max = max(classes, key=lambda each: each["teacher"])
    kept = [each for each in classes if each["is_kept"]]
    assert kept == [each for each in classes if 0.003 <= each["teacher"] <= 0.9 or each is arg_max]
    mass = sum(each["teacher"] for each in kept)
    assert found["kept_classes"] == len(kept) and found["kept_mass"] == pytest.approx(mass, abs=1e-5)
    rest = 1 - arg_max["teacher"]
    assert found["recovered"] == pytest.approx((mass - arg_max["teacher"]) / rest, abs=1e-4)
    assert sum(each["teacher"] for each in classes) == pytest.approx(1, abs=1e-5)
    assert sum(each["student"] for each in classes) == pytest.approx(1, abs=1e-5)
    value = sum(each["teacher"] * (torch.tensor(each["teacher"] / each["student"])).log().item() for each in kept)
    assert found["divergence"] == pytest.approx(value, abs=1e-5)


def test_the_interval_of_a_run_is_that_of_its_checkpoint(run: Path, inspected: Any) -> None:
    first, last = (inspected("clip", run, "--checkpoint", step) for step in (1, UPDATES))
    newest = inspected("clip", run)
    assert newest == last and 0 <= last["lower"] <= last["upper"] <= 1
    assert (first["lower"], first["upper"]) != (last["lower"], last["upper"])


def test_recorded_windows_are_those_that_inspect_computes_for_the_best_checkpoint(run: Path, inspected: Any) -> None:
    """The best checkpoint may be an earlier one than the newest, with another network of DAC-KL."""
    lines = [json.loads(text) for text in (run / "windows.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [line["row"] for line in lines]
    assert len(lines) == NUM_WINDOWS and rows == sorted(set(rows))
    state = files.read_json(run / "checkpoints" / f"step-{UPDATES}" / "state.json")
    line = lines[1]
    place = ("--row", line["row"], "--position", line["position"], "--top", NUM_CLASSES)
    found = inspected("clip", run, "--checkpoint", state["training"]["best_step"], *place)
    for name in ("context", "target", "mode", "kept_classes"):
        assert found[name] == line[name]
    for name in ("lower", "upper", "kept_mass", "recovered", "divergence"):
        assert found[name] == pytest.approx(line[name], rel=1e-4, abs=1e-6)
    assert [each["token_id"] for each in found["classes"]] == [each["token_id"] for each in line["classes"]]
    ranks = [each["rank"] for each in line["classes"]]
    assert ranks[0] == 1 and ranks == sorted(set(ranks))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["method=kd"], "objective.divergence: must be dac_kl"),
        (["--position", "400"], "--position 400: the answer of row 0 has"),
        (["--checkpoint", "1"], "a recipe has no checkpoints"),
    ],
)
def test_an_interval_that_does_not_exist_is_one_line(
    run: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", "clip", str(recipe(run)), *arguments]) == 2
    assert message in capsys.readouterr().err


# --- prompts ------------------------------------------------------------------------------------------------------------


def test_the_answers_to_a_prompt_are_greedy_and_repeatable(run: Path, inspected: Any) -> None:
    found = inspected("prompt", run, "Where is the cat?", "--max-tokens", 5)
    assert found == inspected("prompt", run, "Where is the cat?", "--max-tokens", 5)
    assert set(found["answers"]) == {"student", "teacher"}
    assert found["prompt"].endswith("### Instruction:\nWhere is the cat?\n\n### Response:\n")
    for role, tokens in found["answers"].items():
        assert 1 <= len(tokens) <= 5
        assert all(token["student"] < 0 and token["teacher"] < 0 for token in tokens), role
    sampled = inspected("prompt", run, "Where is the cat?", "--max-tokens", 5, "--temperature", 1)
    total = {role: sum(token[role] for token in tokens) for role, tokens in found["answers"].items()}
    assert all(sum(token[role] for token in sampled["answers"][role]) <= total[role] for role in total)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([" "], "the prompt is empty"),
        (["word " * 200], "the limit of the run is 80"),
        (["a", "--temperature", "-1"], "must be >= 0"),
    ],
)
def test_a_prompt_that_cannot_be_answered_is_one_line(
    run: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", "prompt", str(run), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_recipe_has_no_answers(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "prompt", str(recipe(run)), "Where?"]) == 2
    assert "is a recipe; name a run folder" in capsys.readouterr().err


# --- fine-tunings before the run --------------------------------------------------------------------------------------


def test_the_models_of_fine_tunings_are_found_in_a_moved_run_and_missed_if_they_are_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finetune = {"updates": 1, "batch_size": 4}
    config = tiny_run(
        tmp_path,
        student={"model": str(tmp_path / "student"), "finetune": finetune, "lora": {"rank": 2, "targets": ["q_proj"]}},
        training={"updates": 1, "batch_size": 4},
    )
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(encode_run(config)), encoding="utf-8")
    command = ["inspect", "prompt", str(config.folder), "Where?", "--json"]
    assert main(["inspect", "clip", str(tmp_path / "recipe.yaml")]) == 0
    assert "stage start: is not trained yet" in capsys.readouterr().err
    train_student(config)
    capsys.readouterr()
    assert main(command) == 0
    before = capsys.readouterr().out
    (tmp_path / "elsewhere").mkdir()
    for name in ("run", "run-start"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    command[2] = str(tmp_path / "elsewhere/run")
    assert main(command) == 0 and capsys.readouterr().out == before
    (tmp_path / "elsewhere/run-start").rename(tmp_path / "elsewhere/other")
    assert main(command) == 2
    assert "the fine-tuned student does not exist" in capsys.readouterr().err


# --- all actions --------------------------------------------------------------------------------------------------------


def test_inspection_writes_nothing_to_the_run_folder_and_prints_no_escapes(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(run)
    lines = files.read_lines(run / "revisions.jsonl")
    folder = tmp_path / "hostile"
    folder.mkdir()
    hostile = {**lines[0], "prompt": "\x1b[31mred\x1b[0m\u202e [bold]x[/bold]\n"}
    files.append_lines(folder / "revisions.jsonl", [hostile])
    for arguments in (
        ["sample", run],
        ["revision", run, "--live", "--prompts", "2"],
        ["revision", folder, "--step", lines[0]["step"]],
        ["clip", run],
        ["prompt", run, "Where?", "--max-tokens", "3"],
    ):
        assert main(["inspect", *map(str, arguments)]) == 0
    printed = capsys.readouterr().out
    assert contents(run) == before
    assert "\x1b" not in printed and "\u202e" not in printed and "[bold]x[/bold]" in printed
