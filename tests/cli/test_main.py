"""The command line: invalid input is one line on standard error, exit code 2, and leaves no incomplete files."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

import redistill
from redistill.cli.main import main
from redistill.config.run import encode_run
from redistill.config.schema import SCHEMA
from redistill.data.tokenize import TokenizeConfig
from redistill.errors import RedistillError
from redistill.runs.templates import tokens_of
from redistill.storage import files
from tests.tokenizers import opt_like
from tests.worlds import GPT2, LLAMA, rows, tiny_run, write_model


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a valid recipe, and its models and data."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(encode_run(tiny_run(folder))), encoding="utf-8")
    return folder


@pytest.fixture
def error_line(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail with exit code 2; returns its error line."""

    def run(*arguments: str, out: Path | None = None, left: tuple[str, ...] = (), quiet: bool = False) -> str:
        target = out or tmp_path / "out"
        before = sorted(world.rglob("*"))
        capsys.readouterr()
        code = main([*arguments, "--out", str(target)])
        printed = capsys.readouterr()
        *notes, line = printed.err.splitlines()
        assert code == 2, printed.err
        assert line.startswith("redistill: ") and not any(text.startswith("redistill: ") for text in notes)
        assert "Traceback" not in printed.err and printed.out == ""
        assert not (quiet and notes), notes
        if out is None:
            found = tuple(path.name for path in target.rglob("*")) if target.exists() else ()
            assert found == left and target.exists() == bool(left), f"incomplete files: {found}"
        assert sorted(world.rglob("*")) == before
        return line.removeprefix("redistill: ")

    return run


def recipe(world: Path) -> str:
    return str(world / "recipe.yaml")


# --- settings -----------------------------------------------------------------------------------------------------------

SETTINGS: dict[str, tuple[str, str]] = {
    "unknown field": ("training.update=5", "training.update: no such field; did you mean 'updates'?"),
    "unknown section": ("trainig.updates=5", "trainig: no such section; did you mean 'training'?"),
    "unknown field far from all": ("optimiser.zzz=5", "optimiser.zzz: no such field; allowed are learning_rate"),
    "wrong type": ("training.updates=many", "training.updates = 'many': must be a whole number"),
    "a boolean instead of a number": ("seed=true", "seed = True: must be a whole number"),
    "a number instead of a list": ("data.train=3", "data.train = 3: must be a list"),
    "out of range": ("training.batch_size=0", "training.batch_size = 0: must be >= 1"),
    "not a number": ("optimiser.learning_rate=.nan", "optimiser.learning_rate = nan: must be > 0 and finite"),
    "fraction out of range": (
        "policy={kind: mixed, student_fraction: 2}",
        "policy.student_fraction = 2.0: must lie in [0, 1]; GKD and the paper use 0.5",
    ),
    "unknown method": ("method=mgrs", "method = 'mgrs': no such method; choose one of sft, kd, seqkd, imitkd"),
    "unknown kind": ("policy=student_generate", "policy.kind = 'student_generate': no such kind; did you mean"),
    "unknown value": ("training.precision=fp16", "training.precision = 'fp16': must be 'fp32' or 'tf32' or 'bf16'"),
    "no teacher": ("teacher=null", "teacher: missing; set one, or use the method sft, which needs none (method mgsr)"),
    "not an override": ("training", "'training': an override has the form section.field=value"),
    "an override that is not YAML": ("data.tests={toy: [}", "data.tests={toy: [}: not YAML"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_an_invalid_setting_is_reported_with_its_remedy(world: Path, error_line: Callable[..., str], case: str) -> None:
    override, expected = SETTINGS[case]
    line = error_line("run", recipe(world), override, quiet=True)
    assert expected in line
    assert line.startswith((recipe(world), "'"))


RECIPES: dict[str, tuple[bytes, str]] = {
    "not YAML": (b"name: [a\n", "not YAML"),
    "not a mapping": (b"- name\n", "a recipe is a mapping of sections, such as `method: mgsr`; found list"),
    "empty": (b"", "a recipe is a mapping of sections"),
    "a key twice": (b"name: a\nname: b\nstudent: {model: x}\n", "duplicate key 'name' in the mapping"),
    "an alias bomb": (b"a: &a [x]\nb: [" + b"*a, " * 60 + b"*a]\n", "more than 50 aliases"),
    "a Python object": (b"name: !!python/object/apply:os.system [ls]\n", "not YAML"),
    "not UTF-8": (b"name: \xff\xfe\xfa\n", "not YAML"),
    "too large": (b"# " + b"x" * 1_000_001 + b"\n", "bytes of YAML: must be at most 1000000"),
    "no name": (b"student: {model: x}\n", "name: missing; it has no default"),
    "deeply nested": (b"name: " + b"[" * 1500 + b"]" * 1500 + b"\n", "nested too deeply"),
}


@pytest.mark.parametrize("case", RECIPES)
def test_an_invalid_recipe_is_rejected(tmp_path: Path, error_line: Callable[..., str], case: str) -> None:
    text, expected = RECIPES[case]
    path = tmp_path / "mine.yaml"
    path.write_bytes(text)
    line = error_line("run", str(path), quiet=True)
    assert line.startswith(str(path)) and expected in line


def test_a_missing_recipe_is_reported(tmp_path: Path, error_line: Callable[..., str]) -> None:
    assert error_line("run", str(tmp_path / "none.yaml")).startswith(f"{tmp_path / 'none.yaml'}: No such file")
    assert error_line("run", str(tmp_path)).startswith(f"{tmp_path}: Is a directory")


def test_a_damaged_run_json_is_rejected(tmp_path: Path, error_line: Callable[..., str]) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"schema": 1, "config": "none"}))
    assert "run.json" in error_line("run", str(path))
    path.write_text('{"config": ')
    assert "not YAML" in error_line("run", str(path))


# --- data ---------------------------------------------------------------------------------------------------------------


def data_case(folder: Path, name: str, text: bytes) -> str:
    path = folder / name
    path.write_bytes(text)
    return str(path)


DATA: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty; it must have at least one row"),
    "blank": (b"\n \n", "is empty"),
    "no usable row": (b'{"instruction": "Say hi."}\n', ":1: 'output' is missing"),
    "no answer": (b'{"instruction": "Say hi.", "output": "Hi."}\n' * 9 + b'{"instruction": "x"}\n', ":10: 'output' is missing"),
    "not UTF-8": (b'{"instruction": "a", "output": "b"}\n' * 9 + b'{"instruction": "\xff", "output": "x"}\n', ":10: not UTF-8"),
    "not JSON": (b'{"instruction": "a", "output": "b"}\n' * 9 + b"{instruction: x}\n", ":10: not JSON"),
}


@pytest.mark.parametrize("case", DATA)
@pytest.mark.parametrize("role", ["data.train", "data.validation", "data.tests.toy"])
def test_unusable_data_is_rejected(world: Path, tmp_path: Path, error_line: Callable[..., str], case: str, role: str) -> None:
    text, expected = DATA[case]
    path = data_case(tmp_path, "mine.jsonl", text)
    listed = ("rejected.jsonl",) if text.strip() else ()  # the error names the file
    line = error_line("run", recipe(world), f"{role}={path}", "data.max_bad_rows=0", left=listed)
    assert line.startswith(path) and expected in line


@pytest.mark.parametrize("role", ["data.train", "data.validation", "data.tests.toy"])
def test_missing_data_is_reported(world: Path, tmp_path: Path, error_line: Callable[..., str], role: str) -> None:
    missing = f"{role}={tmp_path / 'none.jsonl'}"
    for model in ([], [f"student.model={tmp_path / 'none'}"]):  # data are looked for before a model is loaded
        line = error_line("run", recipe(world), missing, *model)
        assert line.startswith(f"{tmp_path / 'none.jsonl'}: no such file or folder; give a .jsonl")


def test_an_unknown_test_set_without_a_file_is_rejected(world: Path, error_line: Callable[..., str]) -> None:
    assert "doly" in error_line("run", recipe(world), "data.tests={doly: null}")


def test_a_data_set_whose_prompts_are_all_too_long_is_rejected(world: Path, error_line: Callable[..., str]) -> None:
    line = error_line("run", recipe(world), "data.tokens.prompt_tokens=5")
    assert "none of 24 records is left" in line and "raise prompt_tokens" in line


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_lengths_beyond_a_models_positions_are_rejected(
    world: Path, tmp_path: Path, error_line: Callable[..., str], role: str
) -> None:
    short = write_model(tmp_path / "short", {**GPT2, "n_positions": 64}, 1)
    line = error_line("run", recipe(world), f"{role}.model={short}")
    assert f"prompt_tokens + response_tokens = 96: the {role} has 64 positions; lower one of the two" in line
    line = error_line("evaluate", short, "--data", f"toy={world / 'test.jsonl'}")
    assert "prompt_tokens + response_tokens = 512: the short has 64 positions" in line


def test_a_training_set_too_small_for_a_validation_set_is_rejected(world: Path, error_line: Callable[..., str]) -> None:
    line = error_line("run", recipe(world), "data.validation=null", "data.validation_rows=24")
    assert "data.validation_rows = 24: the training set has only 24 rows" in line


BAD_ROWS = [
    b'{"instruction": "no answer"}',
    b'{"instruction": "\xff", "output": "not UTF-8"}',
    b'{"instruction": "empty", "output": " "}',
    b"[1, 2]",
]


def test_bad_rows_are_listed_and_counted(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = [json.dumps(row).encode() for row in rows(12)]
    path = data_case(tmp_path, "mine.jsonl", b"\n".join([*good[:3], *BAD_ROWS, *good[3:]]) + b"\n")
    command = ["train", recipe(world), "--out", str(tmp_path / "out"), f"data.train={path}"]
    assert main([*command, "method=sft", "data.max_bad_rows=4", "training.updates=1"]) == 0
    rejected = files.read_lines(tmp_path / "out" / "rejected.jsonl")
    assert [(row["source"], row["line"]) for row in rejected] == [(path, line) for line in (4, 5, 6, 7)]
    reasons = [row["reason"] for row in rejected]
    assert "'output' is missing" in reasons[0] and "not UTF-8" in reasons[1] and "a row must be a JSON object" in reasons[3]
    about = files.read_json(tmp_path / "out" / "run.json")["data"]["train"]
    assert (about["rows"], about["rejected"]) == (12, 4)
    assert "4 rejected" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../mine", "my set", ""])
def test_a_test_set_whose_name_is_not_a_file_name_is_rejected_first(
    world: Path, error_line: Callable[..., str], name: str
) -> None:
    path = world / "test.jsonl"
    line = error_line("evaluate", str(world / "student"), "--data", f"{name}={path}", quiet=True)
    assert f"{name!r}: the name of a test set may contain letters, digits, '.', '_' and '-'" in line


def test_too_many_bad_rows_are_an_error_after_they_are_listed(
    world: Path, tmp_path: Path, error_line: Callable[..., str]
) -> None:
    good = [json.dumps(row).encode() for row in rows(12)]
    path = data_case(tmp_path, "mine.jsonl", b"\n".join([*good, *BAD_ROWS]) + b"\n")
    out = tmp_path / "out"
    line = error_line("run", recipe(world), f"data.train={path}", "data.max_bad_rows=3", out=out)
    assert line.startswith(f"{path}:13: 'output' is missing") and "4 of 16 rows" in line and "raise max_bad_rows" in line
    assert str(out / "rejected.jsonl") in line
    assert [entry.name for entry in out.iterdir()] == ["rejected.jsonl"]
    assert len(files.read_lines(out / "rejected.jsonl")) == 4


# --- models and folders -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_missing_model_is_reported(world: Path, tmp_path: Path, error_line: Callable[..., str], role: str) -> None:
    missing, empty = tmp_path / "none", tmp_path / "empty"
    empty.mkdir()
    assert error_line("run", recipe(world), f"{role}.model={missing}").startswith(f"{missing}: no such folder")
    assert error_line("run", recipe(world), f"{role}.model={empty}").startswith(f"{empty}: contains no config.json")


def test_different_vocabularies_are_rejected(world: Path, tmp_path: Path, error_line: Callable[..., str]) -> None:
    student = Path(write_model(tmp_path / "student", LLAMA, 2))
    opt_like().save_pretrained(student)
    line = error_line("run", recipe(world), f"student.model={student}")
    assert "vocabularies differ: id 0 is '<|endoftext|>' in the teacher and '<s>' in the student" in line


def test_more_layers_than_the_teachers_are_rejected(world: Path, error_line: Callable[..., str]) -> None:
    line = error_line("run", recipe(world), "student.model=teacher", "student.initialise.layers=9")
    assert "layers = 9: must be at most 3, the teacher's number of layers; set fewer" in line


def test_an_output_folder_that_cannot_be_created_is_rejected(
    world: Path, tmp_path: Path, error_line: Callable[..., str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    line = error_line("run", recipe(world), out=tmp_path / "file" / "run")
    assert line.startswith(f"{tmp_path / 'file' / 'run'}: cannot be written") and "choose another output folder" in line
    assert (tmp_path / "file").read_text() == "in the way"


def test_an_output_folder_that_is_a_file_is_rejected(world: Path, tmp_path: Path, error_line: Callable[..., str]) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "cannot be written" in error_line("run", recipe(world), out=tmp_path / "file")


def test_the_folder_of_another_run_is_rejected(world: Path, tmp_path: Path, error_line: Callable[..., str]) -> None:
    out = tmp_path / "out"
    config = encode_run(tiny_run(world, "kd"))
    files.write_json(files.make_folder(out) / "run.json", {"schema": SCHEMA, "status": "running", "config": config})
    before = (out / "run.json").read_bytes()
    line = error_line("run", recipe(world), out=out)
    assert (
        line.startswith(f"{out}: contains another run (method is 'kd' there and 'mgsr' here") and "choose another `out`" in line
    )
    assert (out / "run.json").read_bytes() == before and len(list(out.iterdir())) == 1


@pytest.mark.parametrize("name", ["checkpoints", "model"])
def test_a_folder_with_output_of_a_run_but_no_run_json_is_rejected(
    world: Path, tmp_path: Path, error_line: Callable[..., str], name: str
) -> None:
    out = tmp_path / "out"
    (out / name).mkdir(parents=True)
    line = error_line("run", recipe(world), out=out)
    assert line.startswith(f"{out}: contains {name} but no run.json") and "choose another `out`" in line
    assert [path.name for path in out.rglob("*")] == [name]


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), NotADirectoryError(20, "Not a directory")])
def test_an_output_folder_that_cannot_be_read_is_rejected(
    world: Path, tmp_path: Path, error_line: Callable[..., str], monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    out, exists = tmp_path / "out", Path.exists

    def closed(path: Path) -> bool:
        if path.parent == out:
            raise error
        return exists(path)

    monkeypatch.setattr(Path, "exists", closed)
    line = error_line("run", recipe(world), out=out)
    assert line == f"{out}: cannot be read ({error.strerror}); choose another output folder"


@pytest.mark.parametrize("name", ["1", "null", "a: b", "[1]"])
def test_an_output_folder_may_have_any_name(world: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    folders = []
    monkeypatch.setattr("redistill.runs.run.train_student", lambda config: folders.append(config.folder))
    assert main(["train", recipe(world), "--out", name]) == 0
    assert folders == [Path(name)]


def test_a_damaged_run_folder_is_rejected(world: Path, tmp_path: Path, error_line: Callable[..., str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "run.json").write_text("{")
    assert str(out / "run.json") in error_line("run", recipe(world), out=out)
    for text in ("[]", "null"):
        (out / "run.json").write_text(text)
        assert str(out / "run.json") in error_line("run", recipe(world), out=out)


def test_an_existing_folder_is_kept(world: Path, tmp_path: Path, error_line: Callable[..., str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "note.txt").write_text("mine")
    error_line("run", recipe(world), f"student.model={tmp_path / 'none'}", out=tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["note.txt"]


# --- the other commands -------------------------------------------------------------------------------------------------


def test_evaluate_scores_any_model_and_rejects_invalid_arguments(
    world: Path, tmp_path: Path, error_line: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = str(world / "teacher"), f"toy={world / 'test.jsonl'}"
    short = ["--response-tokens", "4", "--prompt-tokens", "80"]
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", model, "--data", data, "--out", str(tmp_path), "--seeds", "ten"])
    assert caught.value.code == 2 and "--seeds: 'ten': must be a whole number" in capsys.readouterr().err.splitlines()[-1]
    assert "seeds = [1, 1]" in error_line("evaluate", model, "--data", data, "--seeds", "1,1")
    assert "none.jsonl: no such file" in error_line("evaluate", model, "--data", f"toy={tmp_path / 'none.jsonl'}")
    assert "no such folder" in error_line("evaluate", str(tmp_path / "none"), "--data", data)
    out = tmp_path / "scores"
    assert main(["evaluate", model, "--data", data, "--seeds", "10", *short, "--out", str(out)]) == 0
    assert str(out / "scores.json") in capsys.readouterr().out
    assert files.read_json(out / "scores.json")["datasets"]["toy"]["prompts"] == 3
    line = error_line("evaluate", model, "--data", data, "--seeds", "20", *short, out=out)
    assert line.startswith(f"{out}: its answers have seeds")


def test_a_run_folder_is_evaluated_with_the_template_and_lengths_of_its_training(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, data={"tokens": {"template": "chat", "prompt_tokens": 33, "response_tokens": 7}})
    files.write_json(tmp_path / "run.json", {"config": encode_run(run)})
    assert tokens_of(str(tmp_path)) == run.data.tokens != TokenizeConfig()
    assert tokens_of(str(tmp_path / "student")) == TokenizeConfig()


def test_a_report_needs_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "none")]) == 2
    assert "no such folder; must be a run folder" in capsys.readouterr().err


def test_an_interruption_is_one_line_and_exit_code_130(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("redistill.runs.run.distill", interrupted)
    assert main(["run", recipe(world)]) == 130
    assert capsys.readouterr().err == "redistill: interrupted; run the same command again to resume\n"


@pytest.mark.parametrize("error", RedistillError.__subclasses__())
def test_every_redistill_error_is_one_line_with_its_exit_code(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: type[RedistillError]
) -> None:
    def failing(*arguments: object, **options: object) -> None:
        raise error("run: a fault; fix it")

    monkeypatch.setattr("redistill.runs.run.distill", failing)
    assert main(["run", recipe(world)]) == error.exit_code
    assert capsys.readouterr().err == "redistill: run: a fault; fix it\n"


def test_python_m_redistill_runs_the_command(world: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(redistill.__file__).parents[1])}
    command = [sys.executable, "-m", "redistill", "run", recipe(world), "training.update=5", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and done.stdout == "" and not (tmp_path / "out").exists()
    assert done.stderr == f"redistill: {recipe(world)}: training.update: no such field; did you mean 'updates'?\n"


@pytest.fixture(autouse=True, scope="module")
def _without_gpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield
