"""Invalid models through each command that reads the invalid part: one printable line that names it, and exit code 2."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from redistill.cli.main import main
from redistill.config.run import encode_run
from redistill.errors import ModelError
from redistill.models import load
from redistill.storage.redaction import plain
from tests.faults import invalid_models
from tests.faults.counts import WHOLE
from tests.faults.invalid_models import CASES, Case
from tests.worlds import LLAMA, rows, tiny_run, write_model, write_rows

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
# Of a config, data check reads the fields, not whether they fit the weights; estimate reads no names of tensors.
NOT_READ = {
    "data check": {
        *("wide", "very wide", "deep", "more rows", "other family", "unknown activation", "incomplete rope"),
        "pad beyond the rows",
    },
    "estimate": {"other family", "gguf mismatch", "gguf more layers"},
}
TRIED = [(case, command) for case in CASES for command in COMMANDS[case.part] if case.name not in NOT_READ.get(command, set())]


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


PROCESSES = ("NaN", "denormal", "wide", "deep", "zero heads", "nested config", "endless", "doubling", "gguf cut tensors", "cut")


@pytest.mark.parametrize("name", PROCESSES if WHOLE else PROCESSES[1:3])
def test_a_process_of_its_own_ends_with_one_line_and_exit_code_2(name: str, valid: Path, tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == name)
    model = invalid(case, valid, tmp_path)
    done = process(arguments("evaluate", model, valid, tmp_path / "out"), tmp_path)
    check_line(done.returncode, done.stderr, case.says)
    assert done.stdout == ""


def process(command: list[str], folder: Path, memory: int | None = None) -> subprocess.CompletedProcess[str]:
    """A command in a process in a folder whose modules would end it; `memory` is what it may take beyond its imports."""
    for module in ("jinja2", "json", "resource", "transformers"):
        (folder / f"{module}.py").write_text("raise SystemExit('code of the current folder ran')")
    limits = "" if memory is None else f"from tests.faults.test_invalid_models import limit_memory; limit_memory({memory}); "
    program = f"import torch, transformers.models.llama.modeling_llama, sys; {limits}from redistill.cli.main import main; "
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.run(
        [sys.executable, "-P", "-c", f"{program}sys.exit(main(sys.argv[1:]))", *command],
        cwd=folder,
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": path,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def limit_memory(more: int) -> None:
    """Limit the address space of this process to what it has and `more` bytes."""
    import resource

    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + more, held + more))


def test_too_little_memory_is_one_line(valid: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "large", {**LLAMA, "hidden_size": 1024, "num_hidden_layers": 1, "intermediate_size": 30_000}, 3)
    assert (tmp_path / "large" / "model.safetensors").stat().st_size > 370e6
    done = process(arguments("evaluate", str(tmp_path / "large"), valid, tmp_path / "out"), tmp_path, memory=250 << 20)
    check_line(done.returncode, done.stderr, "needs more memory than is available")


def test_weights_larger_than_the_machine_are_refused_before_they_are_read(valid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "machine_bytes", lambda: 100_000)
    with pytest.raises(ModelError, match=r"need 0\.0 GiB as float32, but this machine has 0\.0 GiB"):
        load.load_model(load.ModelConfig(model=str(valid / "model")))


def test_there_are_60_invalid_models_of_every_part() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 60
    assert {case.part for case in CASES} == set(COMMANDS)


@pytest.mark.parametrize("model", ["model", "adapter", "model.gguf"])
def test_the_valid_ones_are_evaluated(model: str, valid: Path, tmp_path: Path) -> None:
    assert main(arguments("evaluate", str(valid / model), valid, tmp_path / "out")) == 0
