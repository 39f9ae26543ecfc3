"""Public names have docstrings that a reference page can be generated from.

The names are those that the packages export, and every class that a recipe can select.
"""

import dataclasses
import doctest
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest
import torch

from redistill.config.methods import METHODS
from redistill.data import tasks
from redistill.evaluation.acceptance import accepted
from redistill.evaluation.calibration import calibration_error
from redistill.evaluation.pass_at_k import pass_at_k
from redistill.losses.dac_kl import DacKLConfig
from redistill.losses.divergences import ByOrigin, Divergence
from redistill.policies.source import PolicyNode, Source
from redistill.reports.inference import crossed
from redistill.reports.statistics import holm, paired_bootstrap, sign_flip
from tests.reference_page import pages, public, submodules

ROOT = Path(__file__).parents[1]
PUBLIC = public()
TEST_SETS = [module for module in submodules(tasks) if hasattr(module, "TASK")]

NEEDS_MODELS = {"redistill.runs.run.distill", "redistill.runs.run.train_student"}
"""Names whose example is shown and not executed, since it trains a model from the hub."""

NUMBER = re.compile(r"(int|float)( \| None)?|<class '(int|float)'>")
"""An annotation of one number."""

QUANTITY = re.compile(
    r"nats|logits?\b|second|token|byte|updates?\b|number of|ind(ex|ices)|fraction|probabilit|weight|temperature|seeds?\b|>=|"
    r"<=|> 0|in \[|in \(|%|rows?\b|epochs?\b|length|layers?\b|size|position|factor|rates?\b|rank|count|prompts|score",
    re.IGNORECASE,
)
"""A unit, a range, or what is counted."""

SHAPED = re.compile(r"_[A-Z]+\d*$")
"""The end of a name that states the shape of a tensor (docs/notation.md)."""

every_name = pytest.mark.parametrize("name", PUBLIC)


def described(value: object) -> dict[str, str]:
    """Name -> its description under Args, also those of parent classes."""
    found: dict[str, str] = {}
    for part in value.__mro__ if inspect.isclass(value) else (value,):
        doc = inspect.cleandoc(part.__doc__ or "")
        block = re.search(r"^Args:\n((?:    .*\n|\n)*)", doc + "\n", re.MULTILINE)
        for entry in re.split(r"\n(?=    \w)", "\n" + block[1].rstrip()) if block else ():
            names, _, text = entry.partition(":")
            found |= dict.fromkeys(re.split(r",\s*", names.strip()), " ".join(text.split()))
    return found


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


def annotations(value: object) -> dict[str, str]:
    """Parameter -> its annotation, as text."""
    if dataclasses.is_dataclass(value):
        return {field.name: str(field.type) for field in dataclasses.fields(value) if field.init}
    source = vars(value).get("__init__") if inspect.isclass(value) else value
    return {name: str(kind) for name, kind in getattr(source, "__annotations__", {}).items() if name != "return"}


def methods_of(value: type) -> Iterator[tuple[str, Callable[..., object]]]:
    """The public methods and properties that a class defines; not its fields with a function as default."""
    for name, found in vars(value).items():
        function = found.fget if isinstance(found, property) else getattr(found, "__func__", found)
        if not name.startswith("_") and inspect.isfunction(function) and name not in getattr(value, "__dataclass_fields__", ()):
            yield name, function


CLASSES = {name: value for name, value in PUBLIC.items() if inspect.isclass(value)}
PROTOCOLS = [value for value in (*CLASSES.values(), PolicyNode, Source) if getattr(value, "_is_protocol", False)]
METHOD_DOCS: dict[str, str] = {}
"""Name of a method -> the docstrings that the protocols with this method have for it."""
for _protocol in PROTOCOLS:
    for _name, _function in methods_of(_protocol):
        METHOD_DOCS[_name] = METHOD_DOCS.get(_name, "") + (_function.__doc__ or "")


@pytest.mark.parametrize("name", CLASSES)
def test_the_methods_of_a_public_class_are_described_with_their_parameters_and_errors(name: str) -> None:
    """A method without a docstring has that of its parent class, or of the protocol that its class implements."""
    for method, function in methods_of(CLASSES[name]):
        inherited = [getattr(parent, method).__doc__ or "" for parent in CLASSES[name].__mro__ if hasattr(parent, method)]
        doc = "".join([*inherited, METHOD_DOCS.get(method, "")])
        assert doc, f"{method}: no docstring"
        missing = [key for key in inspect.signature(function).parameters if not re.search(rf"\b{key}\b", doc)]
        assert set(missing) <= {"self", "cls"}, f"{method}: no description of {missing}"
        raises = re.search(r"^\s+raise \w+Error\(|\bcheck_field\(", inspect.getsource(function), re.MULTILINE)
        assert not raises or "Raises:" in doc, f"{method}: an error is raised and not listed"


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
    assert parameters(PUBLIC[name]) - set(described(PUBLIC[name])) == set()


@every_name
def test_numbers_have_a_unit_or_range_and_tensors_a_shape(name: str) -> None:
    about = described(PUBLIC[name])
    numbers = {key for key, kind in annotations(PUBLIC[name]).items() if NUMBER.fullmatch(kind)}
    tensors = {key for key, kind in annotations(PUBLIC[name]).items() if kind in ("Tensor", "torch.Tensor", str(torch.Tensor))}
    assert {key for key in numbers if not QUANTITY.search(about.get(key, ""))} == set()
    assert {key for key in tensors if not SHAPED.search(key) and "[" not in about.get(key, "")} == set()


@every_name
def test_errors_that_a_constructor_or_a_function_raises_are_listed(name: str) -> None:
    value = PUBLIC[name]
    if inspect.isclass(value) and not getattr(value, "_is_protocol", False):
        own = [vars(value).get("__post_init__"), None if dataclasses.is_dataclass(value) else vars(value).get("__init__")]
    else:
        own = [value if inspect.isfunction(value) else None]
    code = "".join(inspect.getsource(function) for function in own if inspect.isfunction(function))
    raises = re.search(r"^\s+raise \w+Error\(|\bcheck_field\(", code, re.MULTILINE)
    assert not raises or "Raises:" in (value.__doc__ or ""), "an error is raised and not listed"


@pytest.mark.parametrize("module", TEST_SETS, ids=lambda module: module.TASK.name)
def test_a_test_set_has_a_source_and_an_example(module: ModuleType) -> None:
    doc = module.__doc__ or ""
    assert "Source:" in doc and doctest.DocTestParser().get_examples(doc.partition("Example:")[2])


@pytest.mark.parametrize("node", [*get_args(Divergence), ByOrigin, DacKLConfig], ids=lambda node: node.__name__)
def test_a_divergence_has_its_equation_source_and_unit(node: type) -> None:
    doc = node.__doc__ or ""
    assert re.search(r"math::|Eq\. \d", doc) and re.search(r"Source: |arXiv|the paper", doc)
    assert re.search(r"\bnats\b|in \[0, 1\]", doc)


NEEDS_SOURCE = re.compile(
    r"redistill\.(policies\.(?!order|source|policy|scorer)\w+\.[A-Z]|evaluation\.metrics\.|vocab_pass\.terms\.)"
)
STATISTICS = (paired_bootstrap, sign_flip, holm, crossed, pass_at_k, calibration_error, accepted)
WITH_SOURCE = {
    **{name: value for name, value in PUBLIC.items() if NEEDS_SOURCE.match(name)},
    **{f"{function.__module__}.{function.__qualname__}": function for function in STATISTICS},
}
"""Policies, metrics, terms of the objective, and functions of statistics."""


@pytest.mark.parametrize("name", WITH_SOURCE)
def test_a_policy_a_metric_a_term_and_a_statistical_function_have_a_source(name: str) -> None:
    """A paper with its equation, a reference implementation, or "own"."""
    assert re.search(r"Source:\s+\S", WITH_SOURCE[name].__doc__ or "")


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_a_source_in_the_list_and_on_its_page(name: str) -> None:
    source = METHODS[name].source
    arxiv = re.search(r"arXiv (\d{4}\.\d{5})", source)
    page = ROOT / f"docs/methods/{name.partition('-robust')[0]}.md"
    assert source and page.is_file()
    assert arxiv is None or arxiv[1] in page.read_text(encoding="utf-8")


def test_every_public_name_has_an_entry_in_the_reference() -> None:
    """Sphinx shows the docstring of a name at its directive."""
    for path, text in pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run `python -m tests.reference_page`"
    entries = re.findall(r"^\.\. auto\w+:: (\S+)$", "".join(pages().values()), re.MULTILINE)
    assert sorted(entries) == sorted(PUBLIC)
