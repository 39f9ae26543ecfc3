"""Every command that a page shows can be parsed: in blocks of shell commands, in other blocks, and in sentences."""

import itertools
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from redistill.cli.parsers import build_parser, parse_arguments
from redistill.config.run import load_config
from tests.test_docs import PAGES, README, RECIPES, ROOT, blocks, commands, every_page
from tests.test_language import QUOTING

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
OPERATORS = {">", ">>", "|", "&&", "||", ";"}
EXAMPLES = {"N": "1", "SHELL": "bash", "COMMAND": "run"}
"""Placeholder -> a valid value; other placeholders are accepted as file names."""

PRESENT = [path for path in PAGES if QUOTING.isdisjoint((path.name, path.parent.name))]
"""The pages that describe this version, not earlier ones."""


def commands_in_text(text: str) -> Iterator[list[str]]:
    """The words of the commands in blocks of plain text; the other lines are what a command prints."""
    for block in blocks(text, "text"):
        for line in block.replace("\\\n", " ").splitlines():
            yield from (shlex.split(inner) for inner in re.findall(r"\$\((redistill [^)]+)\)", line))
            if found := re.match(r"(?:\$ )?((?:redistill [a-z]|pip install ).*)", line):
                yield shlex.split(found[1])


def commands_in_sentences(text: str) -> Iterator[list[str]]:
    """The words of each inline `redistill ...`; of alternatives a|b the first, and with all options in brackets."""
    prose = re.sub(r"^( *)```.*?^\1```", "", text, flags=re.MULTILINE | re.DOTALL)
    for shown in re.findall(r"`(redistill\s[^`]+)`", prose):
        plain = re.sub(r" \[(--[^\]]+)\]", r" \1", shown.replace("\\|", "|"))
        yield [EXAMPLES.get(word, re.split(r"(?<=\w)\|", word)[0]) for word in shlex.split(plain)]


def arguments_of(words: list[str]) -> list[str]:
    """The arguments of `redistill` in a line of the shell."""
    arguments = words[words.index("redistill") + 1 :]
    return arguments[: next((index for index, word in enumerate(arguments) if word in OPERATORS), len(arguments))]


def check_command(words: list[str]) -> None:
    """Check a whole command line: its options, its recipe with the changes, and the files of this repository."""
    arguments = arguments_of(words)
    options = parse_arguments(arguments)
    recipe = str(getattr(options, "recipe", None))
    if "/" not in recipe and "." not in recipe and recipe not in {"None", "RECIPE", "SWEEP"}:
        assert recipe in RECIPES, "the name of a recipe of the package, or a path with a suffix"
        if RECIPES[recipe].kind == "run":
            load_config(Path(recipe), options.overrides, options.allow_code)
    for name in re.findall(r"recipes/\S+", " ".join(arguments)):
        assert (ROOT / name).is_file(), name


def check_installation(words: list[str]) -> None:
    """Check the extras, the files and the release of torch of `pip install`."""
    for option, word in itertools.pairwise(words):
        extras = re.fullmatch(r"(?:\.|redistill)\[(.+)\]", word)
        assert extras is None or set(extras[1].split(",")) <= set(PROJECT["optional-dependencies"]), word
        assert option not in {"-r", "--requirement"} or (ROOT / word).is_file(), word
        assert not word.startswith("torch==") or word in MAKEFILE.split(), word


@every_page
def test_every_command_of_a_block_parses(path: Path) -> None:
    targets = re.findall(r"^([\w-]+):", MAKEFILE, re.MULTILINE)
    text = path.read_text(encoding="utf-8")
    for words in (*commands(text), *commands_in_text(text)):
        if words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= set(targets), words
        elif "install" in words and "pip" in words:
            check_installation(words)
        elif "redistill" in words:
            check_command(words)


@pytest.mark.parametrize("path", PRESENT, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_command_of_a_sentence_parses(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A sentence may omit required arguments and the value of an option; its command and its options exist."""
    for words in commands_in_sentences(path.read_text(encoding="utf-8")):
        arguments = arguments_of(words)
        try:
            parse_arguments(arguments)
        except SystemExit as end:
            printed = capsys.readouterr().err
            assert not end.code or re.search("arguments are required|expected one argument", printed), (words, printed)
        assert unknown_options(arguments) == [], words


def unknown_options(arguments: list[str]) -> list[str]:
    """The options that the command of these arguments does not have."""
    parser = build_parser()
    for word in arguments:
        choices = [action.choices for action in parser._actions if isinstance(action.choices, Mapping)]
        if not choices or word not in choices[0]:
            break
        parser = choices[0][word]
    named = [word.partition("=")[0] for word in arguments if word.startswith("--")]
    return [name for name in named if name not in parser._option_string_actions]


def test_commands_are_found_wherever_a_page_shows_them() -> None:
    page = """Use `redistill run RECIPE [--smoke]` or `redistill inspect sample\\|clip`.

1. An item:

   ```sh
   redistill methods \\
     --matrix
   ```

```text
$ redistill config schema > a.json
eval "$(redistill completion bash)"
redistill: error
pip install '.[spans]'
```
"""
    assert list(commands(page)) == [["redistill", "methods", "--matrix"]]
    assert [" ".join(words) for words in commands_in_text(page)] == [
        "redistill config schema > a.json",
        "redistill completion bash",
        "pip install .[spans]",
    ]
    assert arguments_of(["redistill", "config", "schema", ">", "a.json"]) == ["config", "schema"]
    assert [" ".join(words) for words in commands_in_sentences(page)] == [
        "redistill run RECIPE --smoke",
        "redistill inspect sample",
    ]
    assert len(list(commands(README))) > 10


@pytest.mark.parametrize("line", ["pip install .[span]", "pip install -r none.txt", "pip install torch==1.0"])
def test_an_invalid_installation_is_found(line: str) -> None:
    with pytest.raises(AssertionError):
        check_installation(line.split())


def test_an_unknown_option_is_found() -> None:
    assert unknown_options(["run", "RECIPE", "--smoke", "--fast"]) == ["--fast"]
    assert unknown_options(["config", "schema", "--swep"]) == ["--swep"]
