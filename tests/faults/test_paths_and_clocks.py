"""Any path, locale and clock: a command works to its end, or is rejected by one line before a model is loaded.

The paths are bytes, as the operating system has them.  The runs are subprocesses, since the encoding of paths is chosen when
Python starts.
"""

import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from redistill.config.run import encode_run
from redistill.config.scoring import named_task
from redistill.errors import ConfigError, OutputError
from redistill.records import rate
from redistill.reports.report import build_report
from redistill.runs.run import distill
from redistill.storage import files
from redistill.storage.paths import MAX_BYTES, check_path
from redistill.storage.redaction import printable
from redistill.training.progress import AnswerProgress, duration
from tests.faults.counts import WHOLE
from tests.faults.noise import is_one_line, tried
from tests.worlds import rows, tiny_run, write_rows

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
UNICODE = "ünï 日本 😀".encode()

# Output path, variables of the environment, and whether the run works to its end.
RUNS: dict[str, tuple[bytes, dict[str, str], bool]] = {
    "not UTF-8": (b"bad\xff", {}, False),
    "Unicode": (UNICODE, {"LC_ALL": "C.UTF-8"}, True),
    "Unicode, C locale": (UNICODE, {"LC_ALL": "C"}, True),
    "Unicode, POSIX locale and UTF-8 mode": (UNICODE, {"LC_ALL": "POSIX", "PYTHONUTF8": "1"}, True),
    "Unicode, ASCII paths": (UNICODE, ASCII, False),
    "ASCII output and paths": (b"plain", ASCII, True),
    "Unicode, ASCII output": (UNICODE, {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "ascii"}, True),
    "line break": (b"new\nline", {}, False),
    "escape sequence": (b"esc\x1b[31m", {}, False),
    "tilde": (b"~/run", {}, False),
    "long name": (b"x" * 250, {}, True),
    "name of 256 bytes": (b"x" * 256, {}, False),
    "long path": (b"/".join([b"d" * 100] * 40), {}, False),
    "quotes and spaces": (b" a 'b' \"c\" $d `e` %s {f} & ; * ? [g] <h> ", {}, True),
    "below a file": (b"recipe.yaml/run", {}, False),
    "loop of links": (b"loop", {}, False),
}
QUICK = ("not UTF-8", "Unicode, ASCII paths", "Unicode, ASCII output", "line break", "loop of links")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("paths")
    run = tiny_run(folder, "sft", teacher=None, training={"updates": 1, "log_every": 1})
    (folder / "recipe.yaml").write_text(yaml.safe_dump(encode_run(run)), encoding="utf-8")
    return folder


@pytest.fixture
def here(world: Path, tmp_path: Path) -> Path:
    """A current folder without the output of other tests."""
    for name in ("recipe.yaml", "test.jsonl"):
        shutil.copy(world / name, tmp_path / name)
    (tmp_path / "loop").symlink_to("loop")
    return tmp_path


def redistill(folder: Path, *arguments: str | bytes, **variables: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-P", "-m", "redistill", *arguments]
    environment = {name: value for name, value in os.environ.items() if name not in {*ASCII, "LANG", "LC_CTYPE"}} | variables
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=300)


def is_rejected(done: subprocess.CompletedProcess[bytes]) -> bool:
    """Whether the command printed nothing but one line of the form of errors, in printable ASCII or UTF-8."""
    line = done.stderr.decode("utf-8")
    is_printable = printable(line) == line and line.count("\n") == 1 and line.startswith("redistill: ")
    return done.returncode == 2 and done.stdout == b"" and is_printable and ";" in line


@pytest.mark.parametrize("name", RUNS if WHOLE else QUICK)
def test_a_run_works_to_its_end_or_is_rejected_at_its_start(here: Path, name: str) -> None:
    path, variables, works = RUNS[name]
    done = redistill(here, "run", "recipe.yaml", "--out", path, **variables)
    folder = here / os.fsdecode(path)
    if works:
        assert done.returncode == 0, done.stderr
        assert (folder / "model" / "model.safetensors").exists() and (folder / "report.html").exists()
        again = redistill(here, "report", path, **variables)
        assert (again.returncode, again.stderr) == (0, b"")
        scored = redistill(
            here, "evaluate", path, "--data", "toy=test.jsonl", "--seeds", "1", "--out", path + b"-s", **variables
        )
        assert scored.returncode == 0, scored.stderr
    else:
        assert is_rejected(done), done.stderr
        assert is_absent(folder)


def is_absent(folder: Path) -> bool:
    """Whether nothing was written; the system cannot even look up some of the paths."""
    try:
        return not (folder / "run.json").exists()
    except OSError:
        return True


OUTPUTS = (
    ("demo", "--out"),
    ("evaluate", "student", "--data", "toy=test.jsonl", "--out"),
    ("models", "fetch", "smollm2", "--to"),
    ("train", "recipe.yaml", "--out"),
)


@pytest.mark.parametrize("command", OUTPUTS if WHOLE else OUTPUTS[1:3], ids=lambda command: command[0])
@pytest.mark.parametrize("path", [b"a\xff", b"~/a"] if WHOLE else [b"a\xff"])
def test_each_command_rejects_an_output_path_at_its_start(world: Path, command: tuple[str, ...], path: bytes) -> None:
    assert is_rejected(redistill(world, *command, path))


def test_names_of_other_paths_may_be_any_bytes(world: Path) -> None:
    """Data, recipes and finished runs are read by Python alone."""
    data, recipe = (world / os.fsdecode(name) for name in (b"te\xffst.jsonl", b"rec\xff.yaml"))
    shutil.copy(world / "test.jsonl", data)
    shutil.copy(world / "recipe.yaml", recipe)
    done = redistill(world, "evaluate", "student", "--data", b"toy=te\xffst.jsonl", "--seeds", "1", "--out", "scored")
    assert done.returncode == 0, done.stderr
    assert redistill(world, "config", b"rec\xff.yaml").returncode == 0
    assert redistill(world, "data", "check", b"te\xffst.jsonl", **ASCII).returncode == 0


def test_a_current_folder_that_was_removed_is_an_error_of_one_line(world: Path) -> None:
    line = 'mkdir gone && cd gone && rmdir ../gone && exec "$@"'
    command = ["bash", "-c", line, "bash", sys.executable, "-P", "-m", "redistill", "train", str(world / "recipe.yaml")]
    done = subprocess.run(command, cwd=world, capture_output=True, timeout=300)
    assert is_rejected(done), done.stderr


@given(st.text(max_size=30), st.sampled_from(["", "~", "\n", "\udcff", "\x1b[31m", "\u202e", "é", "x" * 4000]), st.booleans())
@tried(200, 3000)
def test_any_path_is_accepted_or_rejected_in_one_line(name: str, extra: str, is_first: bool) -> None:
    path = Path(extra + name if is_first else name + extra)
    try:
        check_path(path)
    except OutputError as error:
        assert is_one_line(error) and str(error).encode("utf-8") and len(str(error)) < 500
    else:
        assert os.fsencode(path) == str(path).encode("utf-8") and printable(str(path)) == str(path)
        assert len(os.fsencode(path)) <= MAX_BYTES and not str(path).startswith("~")


def test_a_locale_that_encodes_a_path_otherwise_rejects_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries in Rust would write to the UTF-8 name, which is another folder."""
    monkeypatch.setattr(os, "fsencode", lambda text: str(text).encode("latin-1", "surrogateescape"))
    check_path(Path("runs/first"))
    for path in ("é", "日"):
        with pytest.raises(OutputError, match=r"must be encoded as UTF-8; .*PYTHONUTF8=1"):
            check_path(Path(path))


@given(st.text(alphabet="abc.-_/ é", max_size=400))
@tried(50, 500)
def test_the_file_of_any_accepted_test_set_name_can_be_written(tmp_path: Path, name: str) -> None:
    try:
        task = named_task(name)
    except ConfigError as error:
        assert is_one_line(error)
    else:
        files.write_text(tmp_path / f"{task.name}-seed{2**63}.part999.jsonl", "")


# --- text ---------------------------------------------------------------------------------------------------------------


def test_rows_with_lone_surrogates_are_rejected_and_the_run_works_to_its_end(tmp_path: Path) -> None:
    bad = {"instruction": "Where is \ud800?", "input": "", "output": "\udfff"}  # json.dumps writes the escape sequences
    data = {
        "train": [write_rows(tmp_path / "mixed.jsonl", [*rows(12), bad])],
        "tests": {"toy": write_rows(tmp_path / "mixed-test.jsonl", [*rows(2, 28), bad])},
        "max_bad_rows": 1,
    }
    result = distill(tiny_run(tmp_path, "sft", teacher=None, data=data, training={"updates": 1}))
    assert len(files.read_lines(result.folder / "rejected.jsonl")) == 2
    responses = next((result.folder / "responses").glob("*.jsonl"))
    lines = files.read_lines(responses)
    files.rewrite_lines(responses, [line | {"response": "\ud800 </script>"} for line in lines])
    assert "\\ud800" not in build_report(result.folder, []).read_text(encoding="utf-8")


# --- clocks -------------------------------------------------------------------------------------------------------------


def backwards() -> Callable[[], float]:
    readings = itertools.count()
    return lambda: 1e9 - next(readings)


CLOCKS: dict[str, Callable[[], Callable[[], float]]] = {
    "stands still": lambda: lambda: 1000.0,
    "goes backwards": backwards,
    "before 1970": lambda: lambda: -3e8,
}


@pytest.fixture(params=CLOCKS if WHOLE else ["stands still", "goes backwards"])
def clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], float]]:
    reading = CLOCKS[request.param]()
    with monkeypatch.context() as patch:
        for name in ("time", "monotonic", "perf_counter"):
            patch.setattr(time, name, reading)
        yield reading


@pytest.mark.usefixtures("clock")
def test_a_run_needs_no_clock(tmp_path: Path) -> None:
    result = distill(tiny_run(tmp_path, "mgsr", training={"updates": 2, "log_every": 1, "evaluate_every": 1}))
    described = files.read_json(result.folder / "run.json")
    assert (described["status"], described["cost"]["updates"]) == ("finished", 2) and described["cost"]["seconds"] >= 0
    assert result.report.is_file()
    for line in files.read_lines(result.folder / "metrics.jsonl"):
        assert line.get("tokens_per_s", 1.0) > 0


def test_progress_prints_no_speed_without_a_clock(clock: Callable[[], float]) -> None:
    lines: list[str] = []
    progress = AnswerProgress("student", lines.append, clock=clock)
    for done in range(5):
        progress(done, 4, 10 * done)
    assert lines == []


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(max_value=0.0))
@tried(50, 500)
def test_no_rate_and_no_negative_duration_of_a_clock_that_does_not_advance(count: float, seconds: float) -> None:
    assert rate(count, seconds) is None
    assert duration(seconds) == "0:00"
