"""Habits of users of TRL, axolotl, LLaMA-Factory and lm-eval: each works, or one line names what to use."""

import argparse
import dataclasses
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import pytest

from redistill.cli.main import main
from redistill.cli.parsers import build_parser, parse_arguments
from redistill.config.other_tools import OPTIONS, SETTINGS
from redistill.config.parse import parse_override
from redistill.config.run import NAMES, Run, override_run
from redistill.config.sections import FinetuneConfig
from redistill.errors import ConfigError

LEAST = {"name": "r", "method": "sft", "student": {"model": "s"}}

HABITS = {  # an override as in another tool -> a part of the error that names what to use
    "lr=1e-4": "lr: no such section; use optimiser.learning_rate",
    "learning_rate=1e-4": "learning_rate: no such section; use optimiser.learning_rate",
    "student_model=x": "student_model: no such section; use student.model",
    "use_peft=true": "use_peft: no such section; use student.lora, such as {rank: 8}",
    "optim=adamw_torch": "optim: no such section; remove it; the optimiser is AdamW",
    "optimizer.lr=1": "optimizer: no such section; use optimiser, a section with learning_rate",
    "training.precision=bf16-mixed": "training.precision = 'bf16-mixed': must be 'fp32' or 'tf32' or 'bf16'; use 'bf16'",
    "training.learning_rate=1e-4": "training.learning_rate: no such field; use optimiser.learning_rate",
    "optimiser.lr=1e-4": "optimiser.lr: no such field; use learning_rate",
    "epochs=3": "epochs: no such section; use training.updates, in the form '3 epochs'",
    "num_train_epochs=3": "use training.updates, in the form '3 epochs'",
    "training.num_epochs=3": "training.num_epochs: no such field; use updates, in the form '3 epochs'",
    "max_steps=1000": "use training.updates, a number of updates",
    "gradient_accumulation_steps=8": "use training.batch_size for the sequences of an update, and training.micro_batch_size",
    "per_device_train_batch_size=4": "use training.micro_batch_size, and training.batch_size",
    "training.gradient_accumulation_steps=8": "use batch_size for the sequences of an update",
    "model_name_or_path=gpt2": "use student.model",
    "base_model=gpt2": "use student.model",
    "student.model_name_or_path=gpt2": "student.model_name_or_path: no such field; use model",
    "teacher_model_name_or_path=gpt2": "use teacher.model",
    "bfloat16=true": "use training.precision, with the value bf16 or fp32",
    "fp16=true": "use training.precision, with the value bf16; fp16 is not supported",
    "training.precision=bfloat16": "training.precision = 'bfloat16': must be 'fp32' or 'tf32' or 'bf16'; use 'bf16'",
    "training.precision=fp16": "must be 'fp32' or 'tf32' or 'bf16'; use 'bf16', since fp16 is not supported",
    "student.dtype=bf16": "must be 'float32' or 'bfloat16' or 'auto'; use 'bfloat16'",
    "warmup_ratio=0.1": "use optimiser.warmup_updates, a number of updates",
    "lr_scheduler_type=cosine": "use optimiser.schedule",
    "eval_steps=100": "use training.evaluate_every",
    "save_total_limit=2": "use training.keep",
    "output_dir=x": "use out, or the option --out",
    "cutoff_len=512": "use data.tokens.prompt_tokens and data.tokens.response_tokens",
    "dataset=a.jsonl": "use data.train",
    "lora_r=16": "use student.lora.rank",
    "load_in_4bit=true": "use student.lora.quantise, nf4 or int8",
    "metric_for_best_model=loss": "use training.choose_by",
    "lmbda=0.5": "use policy={kind: mixed, student_fraction: VALUE}",
    "resume_from_checkpoint=true": "run the same command again; it resumes from the last checkpoint",
    "report_to=wandb": "use tracking.to, a list such as [tensorboard]",
    "wandb_project=mine": "use tracking.project, with tracking.to=[wandb]",
}
OPTION_HABITS = {  # a command line as in another tool -> the end of the error
    (
        "run",
        "r.yaml",
        "--learning_rate",
        "1e-4",
    ): "--learning_rate: no such option of run; use optimiser.learning_rate=VALUE, without --",
    ("run", "r.yaml", "--learning-rate=1e-4"): "use optimiser.learning_rate=VALUE, without --",
    ("train", "r.yaml", "--num_train_epochs", "3"): "use training.updates=VALUE, in the form '3 epochs', without --",
    ("run", "r.yaml", "--model_name_or_path", "gpt2"): "use student.model=VALUE, without --",
    (
        "evaluate",
        "--model_args",
        "pretrained=gpt2",
        "--tasks",
        "dolly",
    ): "use the model as the first argument, without 'pretrained='",
    ("evaluate", "gpt2", "--tasks", "dolly"): "--tasks: no such option of evaluate; use --data TASK=PATH",
    ("evaluate", "gpt2", "--data", "dolly", "--output_path", "x"): "use --out DIR",
    ("evaluate", "gpt2", "--num_fewshot", "5"): "few-shot examples are not inserted",
}
WORKS = {
    "training.updates=1e3": ("training", "updates", 1000),
    "training.updates=1.0e+3": ("training", "updates", 1000),
    "training.batch_size=1.6e1": ("training", "batch_size", 16),
    "data.max_train_rows=2e4": ("data", "max_train_rows", 20_000),
    "optimiser.learning_rate=5e-5": ("optimiser", "learning_rate", 5e-5),
    "training.updates=3 epochs": ("training", "updates", "3 epochs"),
}


def configured(*overrides: str, **sections: Any) -> Run:
    return override_run({**LEAST, **sections}, map(parse_override, overrides), "r.yaml")


@pytest.mark.parametrize("habit", HABITS)
def test_a_setting_of_another_tool_is_one_line_that_names_the_setting_here(habit: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configured(habit)
    assert HABITS[habit] in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("habit", OPTION_HABITS, ids=" ".join)
def test_an_option_of_another_tool_is_one_line_that_names_the_argument_here(
    habit: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(habit)
    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(OPTION_HABITS[habit])


@pytest.mark.parametrize("habit", WORKS)
def test_a_number_with_an_exponent_is_a_number(habit: str) -> None:
    section, field, value = WORKS[habit]
    found = getattr(getattr(configured(habit), section), field)
    assert found == value and type(found) is type(value)


def test_options_of_the_command_line_accept_an_exponent() -> None:
    options = parse_arguments(
        ["evaluate", "m", "--data", "dolly", "--out", "o", "--limit", "1e2", "--batch-size", "1.6e1", "--seeds", "1e1,20"]
    )
    assert (options.limit, options.batch_size, options.seeds) == (100, 16, (10, 20))
    assert parse_arguments(["sweep", "r.yaml", "--jobs", "1e0"]).jobs == 1


@pytest.mark.parametrize("text", ["1e-1", "1.5", "1e99", "inf", "nan", "e3", "1_0e1x"])
def test_options_reject_other_numbers(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["evaluate", "m", "--data", "dolly", "--out", "o", "--limit", text])
    assert "must be a whole number" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["1e-3", "1.5", "1e400", ".inf", ".nan", "true", "1e99"])
def test_other_numbers_are_not_whole(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^r.yaml: training.batch_size = .*must"):
        configured(f"training.batch_size={text}")


def test_a_text_with_the_form_of_a_number_stays_a_text() -> None:
    assert configured("name=1e3").name == "1e3"


def test_in_a_section_with_the_setting_its_name_is_enough() -> None:
    tuned = {"student": {"model": "s", "finetune": {"lr": 1e-3}}}
    with pytest.raises(ConfigError, match=r"student.finetune.lr: no such field; use learning_rate$"):
        configured(**tuned)
    assert FinetuneConfig(learning_rate=1e-3).learning_rate == 1e-3


@pytest.mark.parametrize("path", sorted({path for path, _ in SETTINGS.values() if path}))
def test_every_hint_names_a_setting_of_a_recipe(path: str) -> None:
    """The path leads through the dataclasses of a recipe."""
    at: Any = Run
    for name in path.split("."):
        hints = get_type_hints(at, localns=NAMES)
        assert name in hints, path
        at = next((member for member in get_args(hints[name]) or (hints[name],) if dataclasses.is_dataclass(member)), None)


def option_strings(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from option_strings(inner)


def test_no_option_of_a_command_is_taken_for_one_of_another_tool() -> None:
    """Neither an option nor its abbreviation, which argparse accepts."""
    own = {option.lstrip("-") for option in option_strings(build_parser())}
    assert {"out", "batch-size", "allow-code"} <= own
    for name in {*SETTINGS, *OPTIONS}:
        for written in {name, name.replace("_", "-")} - {"batch-size"}:
            assert not any(option.startswith(written) for option in own), written
