"""The command `init`: the recipes that it writes are commented, valid, accepted by the schema, and can be run."""

import io
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from redistill.cli.main import main
from redistill.config.methods import METHODS
from redistill.config.recipes import SCHEMA_FILES, SCHEMA_LINE
from redistill.config.run import load_config
from redistill.estimate import Estimate, Memory, Seconds
from tests.config.test_json_schema import faults
from tests.tokenizers import CHATML
from tests.worlds import LLAMA, rows, write_model, write_rows

ONE_LAYER = LLAMA | {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 16}
COMBINATIONS = [
    *(f"--method {name} --teacher teacher --layers 1" for name in METHODS if name != "sft"),
    "--method sft --student student",
    "--method sft --student student --lora",
    "--method kd --teacher teacher --student student --lora 4 --batch-size 3",
    "--method kd --teacher teacher --student student --placement sharded --updates 20",
    "--method gkd --teacher teacher --layers 2 --lora --hours 0.5 --test toy=test.jsonl",
    '--method seqkd --teacher teacher --student student --prompt-tokens 90 --updates "2 epochs"',
    "--method mgsr --teacher teacher --student student --response-tokens 5 --memory 0.001",
    "--method kd --teacher teacher --student student --data messages.jsonl",
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two small models and rows."""
    folder = tmp_path_factory.mktemp("init")
    for name, seed in (("teacher", 1), ("student", 2)):
        write_model(folder / name, ONE_LAYER, seed)
    write_rows(folder / "train.jsonl", [row | {"output": "A cat."} for row in rows(30)])
    write_rows(folder / "test.jsonl", rows(3, 30))
    dialogue = [{"role": "user", "content": "What is asleep?"}, {"role": "assistant", "content": "A cat."}]
    write_rows(folder / "messages.jsonl", [{"messages": dialogue}] * 12)
    return folder


def fixed(num_bytes: int) -> Estimate:
    """An estimate of this memory, half a second an update and one second a validation."""
    return Estimate(
        parameters={"student": 1_500_000, "teacher": 3_000_000, "trained": 1_000},
        memory=Memory(parts={}, phases={"write": 1, "learn": num_bytes, "validate": 2}),
        seconds=Seconds(parts={"student learns": 0.5}, validation=1.0),
        updates=10,
        validations=2,
        notes=(),
    )


@pytest.fixture
def here(world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the world as current folder, with an estimate that takes no time."""
    monkeypatch.chdir(world)
    monkeypatch.setattr("redistill.estimate.estimate", lambda run, **_: fixed(10**8))
    monkeypatch.setattr("sys.stdin", io.StringIO())
    return world


def words(text: str) -> list[str]:
    return [quoted or plain for quoted, plain in re.findall(r'"([^"]+)"|(\S+)', text)]


def test_there_are_at_least_20_combinations():
    assert len(COMBINATIONS) >= 20


@pytest.mark.parametrize("flags", COMBINATIONS)
def test_a_recipe_passes_the_smoke_test(flags, here, capsys):
    file = here / f"recipe-{COMBINATIONS.index(flags)}.yaml"
    assert main(["init", str(file), "--data", "train.jsonl", *words(flags)]) == 0
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert lines[0] == f"{SCHEMA_LINE}{SCHEMA_FILES['run']}" and faults(yaml.safe_load(text)) == []
    uncommented = [line for line in lines if re.match(r" *\w+: \S", line) and "  # " not in line]
    assert uncommented == [], "every value has a reason"
    before = sorted(here.rglob("*"))
    capsys.readouterr()
    assert main(["run", str(file), "--smoke", "--json"]) == 0, capsys.readouterr().err
    found = json.loads(capsys.readouterr().out)
    assert found["sequences"] == load_config(file).training.batch_size and found["loss"] == pytest.approx(found["loss"])
    assert sorted(here.rglob("*")) == before, "nothing is left"


def test_choices_follow_the_data_the_model_and_the_machine(here, capsys):
    flags = "--method kd --teacher teacher --layers 1 --hours 0.1 --memory 0.05 --test toy=test.jsonl --force"
    assert main(["init", "mine.yaml", "--data", "train.jsonl", *words(flags)]) == 0
    assert "warning: needs 0.1 GB of 0.1 GB" in capsys.readouterr().out
    run = load_config(Path("mine.yaml"))
    assert run.name == "mine" and run.data.validation_rows == 3 and run.data.tests == {"toy": "test.jsonl"}
    assert run.training.updates == (360 - 12) * 2 and run.training.evaluate_every == 69
    assert run.teacher.dtype == "bfloat16" and run.training.micro_batch_size == 1 and run.student.gradient_checkpointing
    assert run.data.tokens.prompt_tokens % 8 == 0 and run.data.tokens.response_tokens == 8
    assert run.student.initialise.layers == 1
    text = Path("mine.yaml").read_text(encoding="utf-8")
    assert "student 1.5 M parameters, teacher 3.0 M" in text and "The run needs more than 80% of the memory" in text


def test_the_estimate_of_the_recipe_is_measured(world, monkeypatch, capsys):
    monkeypatch.chdir(world)
    flags = ["--method", "kd", "--teacher", "teacher", "--layers", "2", "--data", "train.jsonl", "--force", "--json"]
    assert main(["init", "measured.yaml", *flags]) == 0
    printed = capsys.readouterr()
    progress = re.findall(r"init: estimating memory and time: (\d) of (\d) measurements, \d+:\d\d$", printed.err, re.MULTILINE)
    assert progress == [(str(number), "4") for number in range(1, 5)]
    found = json.loads(printed.out)
    assert found["fits"] and found["estimate"]["parameters"]["teacher"] > 0
    assert f"Estimate: {found['estimate']['memory']['peak_bytes'] / 1e9:.1f} GB" in Path("measured.yaml").read_text()


def test_a_student_without_chat_template_uses_the_alpaca_template(here):
    flags = ["--data", "messages.jsonl", "--method", "kd", "--teacher", "teacher", "--force"]
    assert main(["init", "base.yaml", *flags, "--student", "student"]) == 0
    assert load_config(Path("base.yaml")).data.tokens.template == "alpaca"
    assert re.search(r"template: alpaca +# the tokenizer has no chat template", Path("base.yaml").read_text(encoding="utf-8"))
    write_model(here / "chat", ONE_LAYER, 3)
    (here / "chat/chat_template.jinja").write_text(CHATML, encoding="utf-8")
    assert main(["init", "chat.yaml", *flags, "--student", "chat"]) == 0
    assert load_config(Path("chat.yaml")).data.tokens.template == "auto"


def test_teacher_and_student_with_different_vocabularies_are_rejected(here, capsys):
    write_model(here / "other", ONE_LAYER, 4)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (here / "other" / name).read_text(encoding="utf-8")
        (here / "other" / name).write_text(text.replace("<|endoftext|>", "<|end|>"), encoding="utf-8")
    flags = ["--data", "train.jsonl", "--method", "kd", "--teacher", "teacher", "--student", "other"]
    assert main(["init", "none.yaml", *flags]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "redistill: --teacher teacher --student other: teacher and student vocabularies differ: id 0 is '<|endoftext|>' in the "
        "teacher and '<|end|>' in the student; choose a teacher and a student with the same tokenizer"
    )
    assert not Path("none.yaml").exists()


def test_an_interruption_has_written_nothing(here, monkeypatch, capsys):
    def interrupted(run, **_):
        raise KeyboardInterrupt

    monkeypatch.setattr("redistill.estimate.estimate", interrupted)
    assert main(["init", "none.yaml", "--data", "train.jsonl", "--method", "sft", "--student", "student"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "redistill: interrupted; nothing was written"
    assert not Path("none.yaml").exists()


def test_an_existing_file_is_only_replaced_with_force(here, capsys):
    Path("own.yaml").write_text("mine")
    flags = ["--data", "train.jsonl", "--method", "sft", "--student", "student"]
    assert main(["init", "own.yaml", *flags]) == 2
    assert capsys.readouterr().err == "redistill: own.yaml: exists; add --force to replace it, or choose another FILE\n"
    assert Path("own.yaml").read_text() == "mine"
    assert main(["init", "own.yaml", *flags, "--force"]) == 0
    assert load_config(Path("own.yaml")).method == "sft"


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        ("--student student", "init: --data: missing; name a file"),
        ("--data train.jsonl --method kd", "--student: missing; name a model, or set --teacher and --layers"),
        ("--data train.jsonl --method kdd --student student", "method = 'kdd': no such method"),
        ("--data train.jsonl --method kd --student student", "init: teacher: missing; set one"),
        ("--data train.jsonl --method sft --student student --updates 3 --hours 1", "--updates and --hours: set only one"),
        ("--data train.jsonl --method sft --student student --updates soon", "updates = 'soon': must be a whole number"),
        ("--data train.jsonl --method sft --student student --memory 0", "--memory 0: must be > 0"),
        ("--data missing.jsonl --method sft --student nowhere/", "nowhere"),
    ],
)
def test_invalid_flags_are_one_line_and_write_nothing(flags, fault, here, capsys):
    assert main(["init", "none.yaml", *words(flags)]) == 2
    printed = capsys.readouterr().err.splitlines()[-1]
    assert fault in printed and not Path("none.yaml").exists()


def test_questions_on_a_terminal_fill_what_the_flags_omit(here, monkeypatch, capsys):
    answers = io.StringIO("train.jsonl\nkd\nteacher\n1\n\n")
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True, readline=answers.readline))
    assert main(["init", "asked.yaml"]) == 0
    run = load_config(Path("asked.yaml"))
    assert (run.method, run.teacher.model, run.student.initialise.layers, run.data.tests) == ("kd", "teacher", 1, {})
    assert capsys.readouterr().err.count("student (a model, or the number of layers") == 1
    assert main(["init", "asked-again.yaml"]) == 2, "the input has ended"
    assert "no answer" in capsys.readouterr().err
