"""Invalid models through each command that reads the invalid part: one printable line that names it, and exit code 2."""

import shutil
from pathlib import Path

import pytest
import yaml

from redistill.cli.main import main
from redistill.config.run import encode_run
from redistill.storage.redaction import plain
from tests.faults import invalid_models
from tests.faults.counts import WHOLE
from tests.faults.invalid_models import CASES, Case
from tests.worlds import rows, tiny_run, write_rows

TRAINING = ("evaluate", "evaluate --teacher", "train", "run")
COMMANDS = {
    "values": TRAINING,
    "weights": (*TRAINING, "estimate"),
    "config": (*TRAINING, "estimate", "data check"),
    "tokenizer": (*TRAINING, "estimate", "data check"),
    "template": (*TRAINING, "estimate", "data check"),
    "gguf": (*TRAINING, "estimate"),
    "adapter": (*TRAINING, "estimate"),
    "adapter values": TRAINING,
}
# Of a config, data check reads what Transformers needs for the tokenizer: fields, not whether they fit the weights.
FITS = (
    "wide",
    "very wide",
    "deep",
    "more rows",
    "other family",
    "unknown activation",
    "incomplete rope",
    "pad beyond the rows",
)
TRIED = [(case, command) for case in CASES for command in COMMANDS[case.part]]
TRIED = [(case, command) for case, command in TRIED if not (command == "data check" and case.name in FITS)]


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A valid model, adapter and GGUF file, and a recipe with its data."""
    folder = tmp_path_factory.mktemp("valid")
    invalid_models.build(folder)
    for method in ("sft", "kd"):
        run = encode_run(tiny_run(folder, method))
        (folder / f"{method}.yaml").write_text(yaml.safe_dump(run), encoding="utf-8")
    write_rows(folder / "rows.jsonl", rows(4))
    return folder


def invalid(case: Case, valid: Path, folder: Path) -> str:
    """Path of the invalid model of a case."""
    name = "model.gguf" if case.part == "gguf" else case.part.split()[0] if case.part.startswith("adapter") else "model"
    copy = shutil.copytree if (valid / name).is_dir() else shutil.copy
    copy(valid / name, folder / name)
    case.breaks(folder / name)
    return str(folder / name)


def arguments(command: str, model: str, valid: Path, out: Path) -> list[str]:
    scored = ["--data", f"toy={valid / 'test.jsonl'}", "--limit", "1", "--seeds", "10", "--response-tokens", "4"]
    return {
        "evaluate": ["evaluate", model, *scored, "--out", str(out)],
        "evaluate --teacher": ["evaluate", str(valid / "model"), *scored, "--teacher", model, "--out", str(out)],
        "train": ["train", str(valid / "sft.yaml"), f"student.model={model}", "--out", str(out)],
        "run": ["run", str(valid / "kd.yaml"), f"teacher.model={model}", "--out", str(out)],
        "estimate": ["estimate", str(valid / "kd.yaml"), f"teacher.model={model}"],
        "data check": ["data", "check", str(valid / "rows.jsonl"), "--tokenizer", model],
    }[command]


def check_line(code: int, printed: str, says: str) -> None:
    lines = [line for line in printed.splitlines() if line.startswith("redistill: ")]
    assert code == 2 and "Traceback" not in printed, printed
    assert len(lines) == 1 and printed.splitlines()[-1] == lines[0], printed
    assert plain(lines[0]) == lines[0] and says in lines[0] and len(lines[0]) < 800, lines[0]


@pytest.mark.parametrize(
    ("case", "command"),
    TRIED if WHOLE else TRIED[::23],
    ids=lambda value: value.name if isinstance(value, Case) else value,
)
def test_an_invalid_model_is_one_line_and_exit_code_2(
    case: Case, command: str, valid: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = invalid(case, valid, tmp_path)
    capfd.readouterr()
    code = main(arguments(command, model, valid, tmp_path / "out"))
    check_line(code, capfd.readouterr().err, case.says)


def test_there_are_60_invalid_models_of_every_part() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 60
    assert {case.part for case in CASES} == set(COMMANDS)


@pytest.mark.parametrize("model", ["model", "adapter", "model.gguf"])
def test_the_valid_ones_are_evaluated(model: str, valid: Path, tmp_path: Path) -> None:
    assert main(arguments("evaluate", str(valid / model), valid, tmp_path / "out")) == 0
