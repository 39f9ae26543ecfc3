"""The layout of the package: sizes, names, layers. A reason in the docstring waives a limit.

A docstring with the line "Longer than 400 lines: <reason>" (module), "Longer than 60 lines: <reason>" (function) or
"More than 12 fields: <reason>" (class) waives the limit of that name.
"""

import ast
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "redistill"
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
MODULES = {"__init__", "__main__", "records", "contracts", "errors", "randomness", "tensors", "interfaces"}
NOT_MIRRORED = {"faults", "integration", "golden", "gpu", "laws", "simulated_cuda"}
VAGUE_NAMES = {"util", "utils", "common", "helper", "helpers", "misc", "base"}
LAYERS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"][0]["layers"]

PROTOCOL_METHODS = {
    method.name
    for tree in TREES.values()
    for node in ast.walk(tree)
    if isinstance(node, ast.ClassDef) and any(ast.unparse(base).startswith("Protocol") for base in node.bases)
    for method in node.body
    if isinstance(method, ast.FunctionDef)
}

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def has_reason(node: Documented, limit: str) -> bool:
    """Whether the docstring has a line `<limit>: <reason>`."""
    return re.search(rf"^\s*{limit}: \S", ast.get_docstring(node) or "", re.MULTILINE) is not None


def is_class_variable(field: ast.AnnAssign) -> bool:
    return ast.unparse(field.annotation).startswith(("ClassVar", "typing.ClassVar"))


def too_long(tree: ast.Module) -> Iterator[str]:
    """Functions past 60 lines, docstring included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            lines = node.end_lineno - node.lineno + 1
            if lines > 60 and not has_reason(node, "Longer than 60 lines"):
                yield f"{node.name}: {lines} lines"


def too_wide(tree: ast.Module) -> Iterator[str]:
    """Classes with more than 12 annotated fields; inherited ones are not counted."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            fields = [field for field in node.body if isinstance(field, ast.AnnAssign) and not is_class_variable(field)]
            if len(fields) > 12 and not has_reason(node, "More than 12 fields"):
                yield f"{node.name}: {len(fields)} fields"


def unsafe_loading(tree: ast.Module) -> Iterator[str]:
    """Uses of pickle, torch.load and code from model repositories."""
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            if name.partition(".")[0] in {"pickle", "cPickle", "dill", "cloudpickle"}:
                yield f"line {node.lineno}: import {name}"
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.load":
            yield f"line {node.lineno}: torch.load"
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code" and ast.unparse(node.value) != "False":
            yield f"line {node.lineno}: trust_remote_code={ast.unparse(node.value)}"


def public_names(node: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[tuple[str, Documented]]:
    """Public functions, classes and methods, with the path of their names."""
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef) and not child.name.startswith("_"):
            yield prefix + child.name, child
            if isinstance(child, ast.ClassDef):
                yield from public_names(child, f"{prefix}{child.name}.")


def badly_documented(tree: ast.Module) -> Iterator[str]:
    """Public names without a docstring, or whose first line has more than 80 characters.

    A method needs none if a protocol of the package documents it.
    """
    for name, node in [("module", tree), *public_names(tree)]:
        text = ast.get_docstring(node)
        method = name.rpartition(".")[2] if "." in name else None
        if text is None and method not in PROTOCOL_METHODS:
            yield f"{name}: no docstring"
        elif text is not None and len(text.splitlines()[0]) > 80:
            yield f"{name}: first line of {len(text.splitlines()[0])} characters"


def lines_with(pattern: str, path: str) -> list[str]:
    return [line for line in (ROOT / path).read_text(encoding="utf-8").splitlines() if re.search(pattern, line)]


def violations(rule: Callable[[ast.Module], Iterator[str]]) -> dict[str, list[str]]:
    """Path -> violations of the rule, for files that have any."""
    found = {path: list(rule(tree)) for path, tree in TREES.items()}
    return {path: faults for path, faults in found.items() if faults}


def test_no_file_is_longer_than_400_lines() -> None:
    lines = {path: len(lines_with("", path)) for path in TREES}
    unexplained = {path: n for path, n in lines.items() if n > 400 and not has_reason(TREES[path], "Longer than 400 lines")}
    assert unexplained == {}


def test_no_function_is_longer_than_60_lines() -> None:
    assert violations(too_long) == {}


def test_no_class_has_more_than_12_fields() -> None:
    assert violations(too_wide) == {}


def test_public_names_are_documented() -> None:
    assert violations(badly_documented) == {}


def test_any_is_rare() -> None:
    found = [f"{path}: {line}" for path in TREES for line in lines_with(r"\bAny\b", path)]
    assert len(found) <= 60, found


def test_type_errors_are_rarely_ignored_and_never_without_a_reason() -> None:
    found = [line for path in TREES for line in lines_with("type: ignore", path)]
    assert len(found) <= 10 and all(re.search(r"type: ignore\[[\w,-]+\]  # \w", line) for line in found), found


def test_no_loading_can_run_code() -> None:
    assert violations(unsafe_loading) == {}


def test_no_file_has_a_vague_name() -> None:
    assert [path for path in TREES if VAGUE_NAMES & set(Path(path).with_suffix("").parts)] == []


def test_the_top_level_has_only_the_shared_modules() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} <= MODULES


def test_the_layers_are_14_and_name_every_package_and_module() -> None:
    assert len(LAYERS) == 14
    named = {name.removeprefix("redistill.") for layer in LAYERS for name in re.split(r" [|:] ", layer)}
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert named == packages | modules


def test_tests_mirror_the_packages() -> None:
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and any(path.glob("[!_.]*"))}
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders - packages <= NOT_MIRRORED


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def f():\n" + "    pass\n" * 60, ["f: 61 lines"]),
        ("def f():\n" + "    pass\n" * 59, []),
        ('def f():\n    """F.\n\n    Longer than 60 lines: a table.\n    """\n' + "    pass\n" * 60, []),
        ('def f():\n    """Longer than 60 lines: \n    """\n' + "    pass\n" * 60, ["f: 63 lines"]),
        ("class C:\n" + "    x: int\n" * 13, ["C: 13 fields"]),
        ("class C:\n    V: ClassVar[int] = 1\n" + "    x: int\n" * 12, []),
        ('class C:\n    """C.\n\n    More than 12 fields: one a tensor.\n    """\n' + "    x: int\n" * 13, []),
        ("import pickle", ["line 1: import pickle"]),
        ("from pickle import loads", ["line 1: import pickle"]),
        ("import torch\ntorch.load('x')", ["line 2: torch.load"]),
        ("load(trust_remote_code=True)", ["line 1: trust_remote_code=True"]),
        ("load(trust_remote_code=False)", []),
    ],
)
def test_a_violation_is_found_unless_a_reason_is_given(source: str, found: list[str]) -> None:
    tree = ast.parse(source)
    assert [*too_long(tree), *too_wide(tree), *unsafe_loading(tree)] == found
