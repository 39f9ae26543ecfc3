"""One template in training, evaluation, export and report: that of the form of each row, with its arguments and date."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from redistill.cli.main import main
from redistill.config.run import Run, encode_run
from redistill.data import chat
from redistill.data.alpaca import alpaca_jinja
from redistill.data.templates import render_prompt
from redistill.data.tokenize import tokenize_prompts
from redistill.errors import ConfigError
from redistill.evaluation.scores import EvaluationConfig
from redistill.models.load import ModelConfig
from redistill.records import Instruction, Record
from redistill.runs.run import distill, evaluate_model, train_student
from redistill.runs.templates import tokens_of
from redistill.storage import files
from redistill.training import loop
from tests.worlds import rows, tiny_run, write_rows

JINJA = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)
DATED = "{{ strftime_now('%d %b %H:%M:%S') }}\n" + JINJA
THINKING = "{% if enable_thinking is false %}/no_think\n{% endif %}" + JINJA


def talks(count: int, offset: int = 0) -> list[dict[str, Any]]:
    """The rows of `tests.worlds.rows` as messages."""
    asked = [(row["instruction"], row["output"]) for row in rows(count, offset)]
    return [{"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]} for a, b in asked]


def chat_run(
    folder: Path,
    jinja: str | None,
    train: Sequence[Mapping[str, Any]],
    test: Sequence[Mapping[str, Any]],
    tokens: Mapping[str, Any] | None = None,
) -> Run:
    """A run of two updates whose student has this chat template."""
    data = {
        "train": [write_rows(folder / "talk.jsonl", train)],
        "validation": None,
        "validation_rows": 2,
        "tests": {"mine": write_rows(folder / "mine.jsonl", test)},
        "tokens": {"prompt_tokens": 80, "response_tokens": 8, **(tokens or {})},
    }
    run = tiny_run(folder, "sft", teacher=None, data=data, training={"updates": 2, "save_every": 1})
    tokenizer = AutoTokenizer.from_pretrained(folder / "student")
    tokenizer.chat_template = jinja
    tokenizer.save_pretrained(folder / "student")
    return run


def prompts_of(folder: Path) -> Mapping[str, Any]:
    """What settings.json says about the prompts: a hash of their token ids for each test set."""
    found: Mapping[str, Any] = files.read_json(folder / "settings.json")
    return found["datasets"]


def evaluated(model: Path, run: Run, out: Path, *, test: str | None = None) -> Mapping[str, Any]:
    config = EvaluationConfig(seeds=(10,))
    tests = {"mine": test} if test else run.data.tests
    evaluate_model(ModelConfig(model=str(model)), tests, config, tokens_of(str(model)), out)
    return prompts_of(out)


def test_messages_are_chat_in_training_and_in_evaluation_of_run_and_model(tmp_path, capsys):
    mixed = [*talks(6), *rows(3, 10), {"prompt": "The cat", "completion": " sleeps."}]
    run = chat_run(tmp_path, JINJA, mixed, [*talks(2, 30), *rows(1, 40)])
    result = distill(run)
    printed = capsys.readouterr()
    lines = (printed.out + printed.err).splitlines()
    assert "train: rendered 6 with the chat template, 3 with the Alpaca template, 1 with no template" in lines
    assert "test mine: rendered 2 with the chat template, 1 with the Alpaca template" in lines
    stored = files.read_json(run.folder / "run.json")
    assert stored["data"]["templates"] == {
        "train": {"chat": 6, "alpaca": 3, "verbatim": 1},
        "test mine": {"chat": 2, "alpaca": 1},
    }
    assert stored["config"]["data"]["tokens"]["template"] == "auto"
    exported = AutoTokenizer.from_pretrained(result.model)
    assert exported.chat_template == JINJA
    assert tokens_of(str(result.model)) == tokens_of(str(run.folder)) == run.data.tokens
    first = prompts_of(run.folder)
    assert evaluated(run.folder, run, tmp_path / "of-run") == first == evaluated(result.model, run, tmp_path / "of-model")


def test_an_alpaca_test_set_of_a_chat_student_is_rendered_with_alpaca_and_a_note_says_so(tmp_path, capsys):
    run = chat_run(tmp_path, JINJA, talks(8), rows(2, 30))
    train_student(run)
    note = (
        "note: test mine: 2 with the Alpaca template, unlike all training rows; data.tokens.template: chat renders all rows "
        "with one template"
    )
    printed = capsys.readouterr()
    assert note in (printed.out + printed.err).splitlines()
    explicit = chat_run(tmp_path, JINJA, talks(8), rows(2, 30), {"template": "chat"})
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    record = Record(record_id="a", prompt=Instruction("Add."), references=())
    by_form, as_chat = (tokenize_prompts([record], tokenizer, each.data.tokens) for each in (run, explicit))
    assert tokenizer.decode(by_form[0]) == render_prompt(record.prompt, "alpaca", None)
    assert tokenizer.decode(as_chat[0]) == "[user] Add.[assistant] "


def test_alpaca_rows_with_an_instruct_model_export_the_alpaca_template(tmp_path):
    run = chat_run(tmp_path, JINJA, rows(8), rows(2, 30))
    model = train_student(run)
    exported, before = (AutoTokenizer.from_pretrained(folder) for folder in (model, tmp_path / "student"))
    assert exported.chat_template == alpaca_jinja(before) and before.chat_template == JINJA
    # Both files have the same name, since the ids of records contain it.
    with_messages = evaluated(model, run, tmp_path / "m", test=write_rows(tmp_path / "t.jsonl", talks(2, 31)[::2]))
    as_alpaca = [{**row, "input": ""} for row in rows(2, 31)[::2]]
    assert with_messages == evaluated(model, run, tmp_path / "a", test=write_rows(tmp_path / "t.jsonl", as_alpaca))


def test_a_base_model_with_messages_is_rejected_by_each_command_in_one_line(tmp_path, capsys):
    run = chat_run(tmp_path, None, talks(8), talks(2, 30))
    files.write_json(tmp_path / "recipe.json", {"config": encode_run(run)})
    student, recipe = str(tmp_path / "student"), str(tmp_path / "recipe.json")
    capsys.readouterr()
    for command in (
        ["train", recipe, "--out", str(tmp_path / "other")],
        ["estimate", recipe],
        ["doctor", recipe],
        ["data", "check", str(tmp_path / "talk.jsonl"), "--tokenizer", student],
        [
            "evaluate",
            student,
            "--data",
            f"mine={tmp_path / 'mine.jsonl'}",
            "--out",
            str(tmp_path / "e"),
            "--response-tokens",
            "8",
        ],
    ):
        assert main(command) == 2, command
        line = capsys.readouterr().err.splitlines()[-1]
        assert "template: alpaca" in line and "no" in line, command
    assert main(["train", recipe, "data.tokens.template=alpaca", "--out", str(tmp_path / "other")]) == 0


class _Clock(datetime):
    """A clock that a test sets."""

    time = datetime(2026, 11, 30, 23, 59, 58)

    @classmethod
    def now(cls, tz=None):
        return cls.time


def test_the_date_of_a_template_is_that_of_the_start_also_after_a_resume_on_the_next_day(tmp_path, monkeypatch):
    monkeypatch.setattr(chat, "datetime", _Clock)
    run = chat_run(tmp_path, DATED, talks(8), talks(2, 30))
    log_update = loop._log_update

    def interrupted(parts: Any, state: Any, *rest: Any) -> None:
        log_update(parts, state, *rest)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_log_update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_student(run)
    monkeypatch.setattr(_Clock, "time", datetime(2026, 12, 1, 8, 0, 0))
    result = distill(run)
    date = files.read_json(run.folder / "run.json")["config"]["data"]["tokens"]["template_date"]
    assert date == "2026-11-30T23:59:58" == tokens_of(str(result.model)).template_date
    first = prompts_of(run.folder)
    assert evaluated(run.folder, run, tmp_path / "r") == first == evaluated(result.model, run, tmp_path / "m")
    assert distill(run).scores == result.scores  # the same folder, the next day
    with pytest.raises(ConfigError, match="template_date is '2026-11-30T23:59:58' there and '2026-12-01T08:00:00' here"):
        train_student(chat_run(tmp_path, DATED, talks(8), talks(2, 30), {"template_date": "2026-12-01T08:00:00"}))


def test_template_arguments_are_used_in_every_rendering_and_unknown_ones_are_noted(tmp_path, capsys):
    arguments = {"enable_thinking": False, "enable_thinkin": True}
    run = chat_run(tmp_path, THINKING, talks(8), talks(2, 30), {"template_arguments": arguments})
    result = distill(run)
    printed = capsys.readouterr()
    assert (
        "note: template_arguments.enable_thinkin: has no effect; the chat template reads enable_thinking"
        in (printed.out + printed.err).splitlines()
    )
    assert files.read_json(run.folder / "run.json")["config"]["data"]["tokens"]["template_arguments"] == arguments
    assert evaluated(result.model, run, tmp_path / "m") == prompts_of(run.folder)
    tokenizer = AutoTokenizer.from_pretrained(result.model)
    records = [Record(record_id="a", prompt=Instruction("Add."), references=())]
    tokens = tokens_of(str(result.model))
    assert "/no_think" not in tokenizer.decode(tokenize_prompts(records, tokenizer, tokens)[0])  # an Alpaca row
