"""Writes docs/configuration.md from the config's dataclasses and their docstrings; test_docs.py holds the page against it.

python -m tests.configuration_page > docs/configuration.md
"""

import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from redistill.config.decode import kind_of
from redistill.config.methods import METHODS
from redistill.config.run import NAMES, Run, StudentConfig, TeacherConfig, encode_run

INTRODUCTION = """# Configuration

<!-- Made by `python -m tests.configuration_page > docs/configuration.md`; do not edit. -->

A recipe is one YAML file. Every field of it is on this page. `redistill config RECIPE` checks a recipe and prints it with all
defaults filled in; it loads no model and writes nothing.

- **Strict.** An unknown key, a wrong type or a value out of range is an error that names the file, the path and the remedy.
- **Overrides** on the command line have the form `section.field=value`; the value is read as YAML:
  `training.updates=50 'data.train=[mine.jsonl]' 'evaluation={seeds: [10], limit: 20}'`.
- **Kinds.** Where a field can hold one of several things, `kind` chooses: `policy: {kind: fixed}`, or `policy: fixed` for its
  defaults. `fkl` and `rkl` are short for `forward_kl` and `reverse_kl`. `teacher` and `engine` are `local` where no kind
  is given.
- **Schema.** `schema: 2` at the top names the version of these fields; a recipe without it is read as the current version. A
  number that only a later redistill knows is refused, and a field that was renamed is an error that names the new one.
- **A method is a policy and an objective.** A recipe's own `policy` or `objective` replaces the method's *as a whole*: fields
  that it leaves out have the defaults of this page, not the method's values. On the command line single fields can be changed:
  `objective.span.squared=true` keeps the rest of the method's block.

Names of functions, such as `keep_mask`, are of the code; their docstrings have the formulas. What the switches of MGSR do, and
which sentence of the paper each of them reads, is in [methods/mgsr.md](methods/mgsr.md).
"""


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for section in sections():
        parts += [f"## {section.title}\n", _first_paragraph(section.node) + "\n"]
        if dataclasses.fields(section.node):
            parts.append(_table(section.path, section.node))
    parts.append("## What the methods stand for\n")
    for name, row in METHODS.items():
        models = {"teacher": TeacherConfig(model="-"), "student": StudentConfig(model="-")}
        whole = encode_run(Run(name="-", policy=row.policy, objective=row.objective, **models))
        tree = {part: whole[part] for part in ("policy", "objective")}
        parts += [f"`method: {name}` - {row.summary}:\n", f"```yaml\n{yaml.safe_dump(tree, sort_keys=False)}```\n"]
    return "\n".join(parts)


@dataclasses.dataclass(frozen=True)
class Section:
    """A dataclass of the tree, the first path at which it stands, and whether `kind` chooses it there."""

    path: str
    node: type
    is_kind: bool

    @property
    def title(self) -> str:
        return (f"`{self.path}`" if self.path else "The recipe") + (f", kind `{kind_of(self.node)}`" if self.is_kind else "")


def sections() -> list[Section]:
    """Every dataclass of the tree, once; those of one field come before what stands below them."""

    def below(section: Section) -> Iterator[Section]:
        for name, hint in _hints(section.node).items():
            nodes = members(hint)
            here = [Section(f"{section.path}.{name}".strip("."), node, has_kinds(nodes)) for node in nodes]
            here = [section for section in here if section.node not in seen]
            seen.update(section.node for section in here)
            yield from here
            for found in here:
                yield from below(found)

    seen: set[type] = {Run}
    root = Section("", Run, False)
    return [root, *below(root)]


def members(hint: Any) -> list[type]:
    """The dataclasses that a type allows."""
    options = get_args(hint) if _is_union(hint) else (hint,)
    return [option for option in options if dataclasses.is_dataclass(option)]


def has_kinds(nodes: list[type]) -> bool:
    """Whether `kind` chooses among these dataclasses: there are several, or the one declares its kind."""
    return len(nodes) > 1 or any("kind" in vars(node) for node in nodes)


def _hints(node: type) -> dict[str, Any]:
    hints = get_type_hints(node, localns=NAMES)
    return {f.name: hints[f.name] for f in dataclasses.fields(node)}


def _table(path: str, node: type) -> str:
    lines = ["| field | type | default | meaning |", "|---|---|---|---|"]
    meanings = _meanings(node)
    for f in dataclasses.fields(node):
        assert f.name in meanings, f"{node.__name__}.{f.name}: no meaning under Args in its docstring"
        where = f"{path}.{f.name}".strip(".")
        cells = (f"`{where}`", _type(_hints(node)[f.name]), _default(f), meanings[f.name])
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _meanings(node: type) -> dict[str, str]:
    """Field -> its line under Args, those of parent classes included."""
    found: dict[str, str] = {}
    for cls in reversed(node.__mro__):
        doc = inspect.cleandoc(cls.__dict__.get("__doc__") or "")
        block = re.search(r"^Args:\n((?:    .*\n|\n)*)", doc + "\n", re.MULTILINE)
        for entry in re.split(r"\n(?=    \w)", "\n" + block.group(1).rstrip()) if block else ():
            names, _, text = entry.partition(":")
            found |= dict.fromkeys(re.split(r",\s*", names.strip()), re.sub(r"\bNone\b", "null", " ".join(text.split())))
    return found


def _first_paragraph(node: type) -> str:
    doc = inspect.cleandoc(node.__doc__ or "")
    return " ".join(doc.split("\n\n")[0].split())


def _default(f: "dataclasses.Field[Any]") -> str:
    if f.default is not dataclasses.MISSING:
        value = f.default
    elif f.default_factory is not dataclasses.MISSING:
        value = f.default_factory()
    else:
        return "needed"
    if dataclasses.is_dataclass(value):
        assert value == type(value)(), f"{f.name}: a default that differs from its class's defaults has no short name"
        return f"`{kind_of(type(value))}`" if has_kinds(members(f.type)) or "PolicyConfig" in str(f.type) else "its own"
    return f"`{_plain(value)}`"


def _plain(value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    return "null" if plain is None else str(plain).lower() if isinstance(plain, bool) else _number(plain)


def _number(value: Any) -> str:
    return f"{value:g}".replace("e-0", "e-") if isinstance(value, float) else str(value).replace("'", "")


def _type(hint: Any) -> str:
    return " or ".join(_words(hint))


def _words(hint: Any) -> Iterator[str]:
    if _is_union(hint):
        options = get_args(hint)
        kinds = [option for option in options if dataclasses.is_dataclass(option)]
        if len(kinds) > 1:
            yield "one of " + ", ".join(f"`{kind_of(kind)}`" for kind in kinds)
            options = tuple(option for option in options if option not in kinds)
        for option in options:
            yield from _words(option)
    elif get_origin(hint) is Literal:
        yield " or ".join(f"`{value}`" for value in get_args(hint))
    elif get_origin(hint) is tuple:
        item = _type(get_args(hint)[0])
        yield f"list of {item}" if "`" in item else f"list of {item}s"
    elif dataclasses.is_dataclass(hint):
        yield f"section (kind `{kind_of(hint)}`)" if has_kinds([hint]) else "section"
    else:
        names = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "null"}
        yield names.get(hint, "mapping")


def _is_union(hint: Any) -> bool:
    return get_origin(hint) is Union or type(hint).__name__ == "UnionType"


if __name__ == "__main__":
    print(page(), end="")
