"""Public names have docstrings that a reference page can be generated from.

The names are those that the packages export, and every class that a recipe can select.
"""

import dataclasses
import doctest
import inspect
import re
from types import ModuleType
from typing import get_args

import pytest

from redistill.data import tasks
from redistill.losses.dac_kl import DacKLConfig
from redistill.losses.divergences import ByOrigin, Divergence
from tests.reference_page import pages, public, submodules

PUBLIC = public()
TEST_SETS = [module for module in submodules(tasks) if hasattr(module, "TASK")]

NEEDS_MODELS = {"redistill.runs.run.distill", "redistill.runs.run.train_student"}
"""Names whose example is shown and not executed, since it trains a model from the hub."""

every_name = pytest.mark.parametrize("name", PUBLIC)


def described(value: object) -> set[str]:
    """The names under Args, also those of parent classes."""
    names: set[str] = set()
    for part in value.__mro__ if inspect.isclass(value) else (value,):
        doc = inspect.cleandoc(part.__doc__ or "")
        block = re.search(r"^Args:\n((?:    .*\n|\n)*)", doc + "\n", re.MULTILINE)
        for entry in re.findall(r"^    (\w[\w, ]*):", block[1] if block else "", re.MULTILINE):
            names |= set(re.split(r",\s*", entry))
    return names


def parameters(value: object) -> set[str]:
    """The fields of a dataclass that its constructor takes, or the parameters of a function or constructor."""
    if dataclasses.is_dataclass(value):
        return {field.name for field in dataclasses.fields(value) if field.init}
    if inspect.isclass(value):
        takes = vars(value).get("__init__")
        if not inspect.isfunction(takes) or getattr(value, "_is_protocol", False):
            return set(getattr(value, "_fields", ()))
        return set(inspect.signature(takes).parameters) - {"self"}
    return set(inspect.signature(value).parameters)


def test_the_names_are_found() -> None:
    assert {"redistill.runs.run.distill", "redistill.losses.divergences.kl.ForwardKL", "redistill.contracts.Batch"} <= set(
        PUBLIC
    )
    assert {module.TASK.name for module in TEST_SETS} == set(tasks.TASKS)


@every_name
def test_a_public_name_is_described_in_one_short_line(name: str) -> None:
    first = inspect.cleandoc(PUBLIC[name].__doc__ or "").partition("\n")[0]
    assert 0 < len(first) <= 80 and not first.startswith("Computes"), first


@every_name
def test_a_public_name_has_an_example(name: str) -> None:
    doc = PUBLIC[name].__doc__ or ""
    assert "Example:" in doc, "no Example"
    lines = doctest.DocTestParser().get_examples(doc.partition("Example:")[2])
    assert lines, "the Example has no code"
    is_executed = not all(doctest.SKIP in line.options for line in lines)
    assert is_executed != (name in NEEDS_MODELS), "the Example is not executed"


@every_name
def test_every_parameter_of_a_public_name_is_described(name: str) -> None:
    assert parameters(PUBLIC[name]) - described(PUBLIC[name]) == set()


@pytest.mark.parametrize("module", TEST_SETS, ids=lambda module: module.TASK.name)
def test_a_test_set_has_a_source_and_an_example(module: ModuleType) -> None:
    doc = module.__doc__ or ""
    assert "Source:" in doc and doctest.DocTestParser().get_examples(doc.partition("Example:")[2])


@pytest.mark.parametrize("node", [*get_args(Divergence), ByOrigin, DacKLConfig], ids=lambda node: node.__name__)
def test_a_divergence_has_its_equation_source_and_unit(node: type) -> None:
    doc = node.__doc__ or ""
    assert re.search(r"math::|Eq\. \d", doc) and re.search(r"Source: |arXiv|the paper", doc)
    assert re.search(r"\bnats\b|in \[0, 1\]", doc)


def test_every_public_name_has_an_entry_in_the_reference() -> None:
    """Sphinx shows the docstring of a name at its directive."""
    for path, text in pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run `python -m tests.reference_page`"
    entries = re.findall(r"^\.\. auto\w+:: (\S+)$", "".join(pages().values()), re.MULTILINE)
    assert sorted(entries) == sorted(PUBLIC)
