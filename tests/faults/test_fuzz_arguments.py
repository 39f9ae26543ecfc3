"""Whatever the command line is: the command runs, or one line says what is wrong, and the exit code is 2."""

import contextlib
import io
import math
import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from redistill.cli.main import main
from redistill.cli.parsers import parse_arguments
from redistill.storage.redaction import printable
from tests.faults.noise import TEXTS, fuzzed

NUMBERS = [
    *(
        "0",
        "1",
        "-1",
        "1e3",
        "1.5",
        "nan",
        "-nan",
        "inf",
        "-inf",
        "1e400",
        "-1e400",
        "1e-400",
        "0x10",
        "1_000",
        "٣",
        "½",
        " 1",
        "",
    ),
    *(
        str(2**31),
        str(2**63 - 1),
        str(2**63),
        str(-(2**63)),
        str(2**64),
        str(10**400),
        "9" * 4299,
        "9" * 5000,
        "-" + "9" * 5000,
    ),
    *("1,2", "1,1", "1,,2", ",", "10,20,30", "1," * 2000 + "3", "1:30", "1;2", "1\n2", "\x00", "\u202e1", "\ud800", "a" * 5000),
]
WORDS = st.one_of(st.sampled_from(range(len(NUMBERS))).map(NUMBERS.__getitem__), TEXTS)
"""Words of a command line that stand for numbers, and others."""

WHOLE_NUMBERS = ("--limit", "--no-repeat-ngram", "--batch-size", "--prompt-tokens", "--response-tokens", "--seeds")
REAL_NUMBERS = ("--temperature", "--top-p")
MISSING = "./no/such/folder"


def run(arguments: list[str]) -> tuple[int, str]:
    """The exit code of a command, and what it printed on standard error."""
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main(arguments)
        except SystemExit as error:
            code = int(error.code or 0)
    return code, printed.getvalue()


def check_refused(arguments: list[str]) -> None:
    """The last line that a command prints states why it failed, and the exit code is 2."""
    code, printed = run(arguments)
    lines = printed.splitlines()
    assert code == 2 and "Traceback" not in printed, (arguments, printed)
    assert lines[-1].startswith("redistill") and 10 < len(lines[-1]) < 3000, (arguments, printed)
    assert printable(printed) == printed, (arguments, printed)


@given(st.lists(st.tuples(st.sampled_from([*WHOLE_NUMBERS, *REAL_NUMBERS]), WORDS), min_size=1, max_size=3))
@fuzzed("numbers of the command line")
def test_any_number_is_parsed_or_refused(found: list[tuple[str, str]]) -> None:
    options = [word for pair in found for word in pair]
    arguments = ["evaluate", MISSING, "--data", f"toy={MISSING}", "--out", MISSING, *options]
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            parsed = parse_arguments(arguments)
    except SystemExit:
        check_refused(arguments)
        return
    whole = [
        parsed.limit,
        parsed.no_repeat_ngram,
        parsed.batch_size,
        parsed.prompt_tokens,
        parsed.response_tokens,
        *parsed.seeds,
    ]
    assert all(number is None or -(2**63) <= number < 2**63 for number in whole)
    assert math.isfinite(parsed.temperature) and math.isfinite(parsed.top_p)


@given(WORDS)
@fuzzed("--jobs")
def test_any_number_of_jobs(word: str) -> None:
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            jobs = parse_arguments(["sweep", MISSING, "--jobs", word]).jobs
    except SystemExit:
        check_refused(["sweep", MISSING, "--jobs", word])
    else:
        assert 1 <= jobs < 2**63


COMMANDS = [
    ["evaluate", MISSING, "--data", f"toy={MISSING}", "--out", MISSING, "--limit", "*"],
    ["evaluate", MISSING, "--data", f"toy={MISSING}", "--out", MISSING, "--seeds", "*", "--top-p", "*"],
    ["evaluate", MISSING, "--data", f"toy={MISSING}", "--out", MISSING, "--response-tokens", "*", "--metric", "*"],
    ["evaluate", "*", "--data", "toy=*", "--out", MISSING],
    ["train", MISSING, "*"],
    ["config", "*", "seed=*"],
    ["config", "recipes/no.yaml", "*", "*"],
    ["sweep", MISSING, "--only", "*", "--jobs", "*", "--dry-run"],
    ["estimate", MISSING, "--row", "*"],
    ["data", "check", "*", "--prompt-tokens", "*"],
    ["data", "check", MISSING, "--against", "*=*"],
    ["report", "*"],
    ["compare", "*", MISSING, "--baseline", "*"],
    ["*", "--json", "*"],
    ["models", "fetch", "*"],
]
"""Commands that fail, whatever word replaces each "*"."""


@given(st.sampled_from(COMMANDS), st.lists(WORDS, min_size=3, max_size=3))
@fuzzed("arguments")
def test_any_word_of_a_command(tmp_path: Path, command: list[str], words: list[str]) -> None:
    rest = iter(words)
    arguments = ["".join(next(rest) if part == "*" else part for part in re.split(r"(\*)", word)) for word in command]
    with contextlib.chdir(tmp_path):
        check_refused(arguments)
