"""Methods that train on generated text need prompts alone; a method that needs answers is refused by the name of its part."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from redistill.cli.main import main
from redistill.config.methods import METHODS
from redistill.config.run import encode_run
from redistill.errors import ConfigError, DataError
from redistill.policies import GoldItem
from redistill.runs.run import train_student
from redistill.storage.files import read_json, read_lines
from tests.worlds import rows, tiny_run, write_rows

ALONE = {"seqkd", "imitkd", "opd", "iwopd", "minillm", "distillm2", "skd", "draft"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompts")
    tiny_run(folder)
    return folder


def prompts(folder: Path, form: str = "instruction") -> str:
    """A file of prompts without answers."""
    texts = [row["instruction"] for row in rows(20)]
    made: list[dict[str, Any]] = [{form: text} for text in texts]
    if form == "messages":
        made = [{"messages": [{"role": "user", "content": text}]} for text in texts]
    return write_rows(folder / f"{form}.jsonl", made)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("form", ["prompt", "messages"])
def test_a_method_trains_on_prompts_alone_or_is_refused_by_name(world: Path, method: str, form: str) -> None:
    if form == "messages" and method not in ("imitkd", "kd"):
        pytest.skip("the form of the prompt makes no difference to the method")
    tokens = {"prompt_tokens": 80, "response_tokens": 16, "template": "alpaca"}  # the tokenizer has no chat template
    tests: dict[str, Any] = {"train": [prompts(world, form)], "tests": {}, "tokens": tokens}
    run = tiny_run(world, method, out=f"{method}-{form}", data=tests, training={"updates": 2, "batch_size": 4, "log_every": 1})
    if method not in ALONE:
        needing = "objective|policy (fixed|mixed|adaptive)"
        with pytest.raises(
            DataError, match=rf"({needing}) needs gold answers; of the methods, seqkd, imitkd, .* and draft train"
        ):
            train_student(run)
        return
    assert (train_student(run) / "model.safetensors").is_file()
    described = read_json(run.folder / "run.json")["data"]
    assert described["train"]["prompts alone"] == described["kept"]["train"] == 20
    lines = read_lines(run.folder / "metrics.jsonl")
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2]


def test_training_on_prompts_alone_resumes_and_uses_stored_answers(world: Path) -> None:
    data = {"train": [prompts(world, "prompt")], "tests": {}}
    training = {"updates": 3, "batch_size": 4, "log_every": 1, "save_every": 1}
    run = tiny_run(world, "seqkd", out="stored", data=data, training=training)
    train_student(run)
    answers = read_lines(run.folder / "teacher-responses.jsonl")
    assert len(answers) == 1 + 12 and isinstance(answers[0]["teacher_cross_entropy"], float)


def test_rows_with_and_without_answers_are_both_used_and_validation_takes_those_with_answers(world: Path) -> None:
    mixed = [{"instruction": "Say it.", "output": ""} | row for row in rows(4)]
    path = write_rows(world / "mixed.jsonl", [*[{"prompt": f"Count to {k}."} for k in range(6)], *mixed])
    data = {"train": [path], "validation": None, "validation_rows": 3, "tests": {}}
    run = tiny_run(world, "imitkd", out="mixed", data=data, training={"updates": 2, "batch_size": 4})
    train_student(run)
    kept = read_json(run.folder / "run.json")["data"]["kept"]
    assert (kept["train"], kept["validation"], kept["dropped"]) == (7, 3, 0)


def test_validation_without_answers_is_refused_by_name(world: Path) -> None:
    data: dict[str, Any] = {"train": [prompts(world, "prompt")], "validation": None, "validation_rows": 2, "tests": {}}
    with pytest.raises(
        ConfigError, match=r"validation can use 0 of them .*prompt.jsonl:1: the record has no answer.*data.validation"
    ):
        train_student(tiny_run(world, "imitkd", out="none", data=data))
    data["validation"] = data["train"][0]
    with pytest.raises(DataError, match=r"prompt.jsonl:1: 'completion' is missing; .*; validation needs answers"):
        train_student(tiny_run(world, "imitkd", out="none", data=data))


def test_a_policy_that_does_not_declare_its_need_gets_a_typed_error() -> None:
    from tests.policies.fixture import make_fixture

    example = make_fixture().examples[0]
    with pytest.raises(ConfigError, match=r"policy: uses gold answers, but .* has none; add Needs\(gold=True\)"):
        _ = GoldItem(example, None).sequence


@pytest.mark.parametrize(("method", "code"), [("imitkd", 0), ("kd", 2)])
def test_data_check_knows_whether_the_method_needs_answers(
    world: Path, method: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tiny_run(world, method, data={"train": [prompts(world, "prompt")], "tests": {}})
    recipe = world / f"{method}.yaml"
    recipe.write_text(yaml.safe_dump(encode_run(run)), encoding="utf-8")
    assert main(["data", "check", "--recipe", str(recipe)]) == code
    printed = capsys.readouterr()
    assert ("20 rows without an answer (prompts alone)" in printed.out) == (code == 0)
    assert ("no answer: line 1" in printed.out) == (code == 2)
