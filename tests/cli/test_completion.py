"""The command `completion`: scripts for three shells, and the words that they offer."""

import json
import os
import subprocess
import sys

import pytest

from redistill.cli import completion
from redistill.cli.main import main
from redistill.config.methods import METHODS
from redistill.config.recipes import packaged_recipes
from redistill.config.run import decode_run

LINES = {
    "redistill con": ["config"],
    "redistill config d": ["diff"],
    "redistill recipes s": ["show"],
    "redistill run smollm2-d": ["smollm2-dolly"],
    "redistill sweep table1-t": ["table1-toy"],
    "redistill run opt --smo": ["--smoke"],
    "redistill run opt training.upd": ["training.updates="],
    "redistill run opt method=mgs": ["mgsr", "mgsr-robust"],
    "redistill run opt training.precision=b": ["bf16"],
    "redistill train opt teacher.cache_new_text=t": ["true"],
    "redistill init x.yaml --method iw": ["iwopd"],
    "redistill completion z": ["zsh"],
}
"""The beginning of a command, and the words that complete it; a word after = is that of the value, as in bash."""

CODE = """
import io, json, os, sys
import argcomplete
from redistill.cli import completion
from redistill.cli.parsers import build_parser

def offered(line):
    out = io.StringIO()
    os.environ.update({"COMP_LINE": line, "COMP_POINT": str(len(line))})
    finder = argcomplete.CompletionFinder()
    argcomplete.autocomplete = lambda parser: finder(parser, exit_method=lambda code: None, output_stream=out)
    completion.complete(build_parser())
    return [word.strip() for word in out.getvalue().split("\013") if word.strip()]

print(json.dumps({"words": {line: offered(line) for line in json.loads(sys.argv[1])}, "torch": "torch" in sys.modules}))
"""
"""Prints what is offered for each line; argcomplete closes a file of its process, so that it needs one of its own."""


@pytest.fixture(scope="module")
def offered():
    """What a shell gets for `LINES`, for the recipes of a run, and whether torch was imported."""
    breaks = " \t\n\"'><=;|&(:"
    given = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_SUPPRESS_SPACE": "1", "COMP_TYPE": "9", "_ARGCOMPLETE_COMP_WORDBREAKS": breaks}
    command = [sys.executable, "-c", CODE, json.dumps([*LINES, "redistill run "])]
    done = subprocess.run(command, env=os.environ | given, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_a_script_names_the_program(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "redistill" in script and "_ARGCOMPLETE" in script


def test_bash_accepts_its_script(capsys):
    assert main(["completion", "bash"]) == 0
    subprocess.run(["bash", "-n"], input=capsys.readouterr().out, text=True, check=True)


@pytest.mark.parametrize("line", LINES)
def test_words_are_completed(line, offered):
    assert offered["words"][line] == LINES[line]


def test_every_recipe_and_method_is_offered(offered):
    runs = {name for name, recipe in packaged_recipes().items() if recipe.kind == "run"}
    assert set(offered["words"]["redistill run "]) >= runs
    assert set(completion.methods("")) == set(METHODS)


def test_completion_imports_no_torch(offered):
    assert offered["torch"] is False


def test_an_offered_setting_is_a_field_of_a_recipe():
    """A setting whose value is a fixed text is decoded; the values of all other fields differ in type."""
    names = [text.removesuffix("=") for text in completion.overrides("")]
    assert len(names) == len(set(names)) > 150
    tree = {"name": "r", "teacher": {"model": "t"}, "student": {"model": "s"}}
    for section in ("training", "optimiser", "guards", "evaluation"):
        fields = [name.removeprefix(f"{section}.") for name in names if name.startswith(f"{section}.") and name.count(".") == 1]
        node = getattr(decode_run(tree, "r"), section)
        assert set(fields) == set(vars(node))
