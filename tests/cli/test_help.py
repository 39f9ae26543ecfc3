"""Help pages: complete, short, with an example that parses, and without slow imports."""

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator

import pytest

from redistill.cli.main import main
from redistill.cli.parsers import build_parser, parse_arguments
from redistill.config.recipes import packaged_recipes


def pages(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parser and the parsers of its commands, at every depth."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from pages(sub)


PAGES = [page.prog.split()[1:] for page in pages(build_parser())]


@pytest.fixture(params=PAGES, ids=lambda words: " ".join(["redistill", *words]))
def words(request: pytest.FixtureRequest) -> list[str]:
    """The words of a command, without the name of the program."""
    found: list[str] = request.param
    return found


@pytest.fixture
def page(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Its help page, on a wide terminal."""
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as caught:
        main([*words, "--help"])
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_every_command_is_among_the_pages() -> None:
    assert len(PAGES) == 36 and ["data", "check"] in PAGES


def test_a_page_fits_a_terminal(page: str) -> None:
    lines = page.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80


def test_a_page_has_one_example_which_parses_and_whose_recipe_exists(words: list[str], page: str) -> None:
    (example,) = re.findall(r"^example: (.+)$", page, re.MULTILINE)
    assert page.rstrip().endswith(example)
    arguments = shlex.split(example)
    assert arguments[: 1 + len(words)] == ["redistill", *words]
    assert callable(parse_arguments(arguments[1:]).command)
    named = getattr(parse_arguments(arguments[1:]), "recipe", None)
    assert named is None or str(named) in packaged_recipes()


def test_every_argument_is_described() -> None:
    for parser in pages(build_parser()):
        undescribed = [action.dest for action in parser._actions if not action.help and action.metavar is None]
        assert undescribed == [], parser.prog
        assert parser.description and parser.description.endswith("."), parser.prog


def test_the_exit_codes_are_on_the_first_page(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    _, _, codes = capsys.readouterr().out.partition("exit codes:\n")
    listed = re.findall(r"^  ((?:\d+, )?\d+) ", codes, re.MULTILINE)
    assert ", ".join(listed).split(", ") == ["0", "1", "2", "75", "130", "143"]


def test_help_imports_the_standard_library_only() -> None:
    code = """
import sys
before = set(sys.modules)
from redistill.cli.main import main
for words in {pages}:
    try:
        main([*words, "--help"])
    except SystemExit:
        pass
roots = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print("imported:", sorted(roots - sys.stdlib_module_names - {{"redistill"}}))
"""
    done = subprocess.run([sys.executable, "-c", code.format(pages=PAGES)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "imported: []"


@pytest.mark.parametrize("arguments", [[], ["run"], ["run", "mine.yaml", "--outt", "x"], ["frobnicate"]])
def test_invalid_arguments_are_one_line_after_the_usage_and_exit_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    printed = capsys.readouterr()
    assert caught.value.code == 2 and printed.out == ""
    assert printed.err.startswith("usage: redistill") and ": error: " in printed.err.splitlines()[-1]


def test_overrides_may_follow_an_option() -> None:
    options = parse_arguments(["run", "mine.yaml", "a.b=1", "--out", "x", "c.d=2"])
    assert options.overrides == ["a.b=1", "c.d=2"]
