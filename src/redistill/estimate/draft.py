"""Drafts of recipes.

A draft contains settings, each with the reason for its value.  `recipe_text` converts a draft to YAML.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import yaml

from redistill.config.parse import Override, apply_overrides
from redistill.config.recipes import SCHEMA_FILES, SCHEMA_LINE
from redistill.config.run import Run, decode_run
from redistill.records import Json

COLUMN = 46
"""Column at which comments begin."""


@dataclass(frozen=True)
class Setting:
    """The value of a field, and why it has this value.

    Args:
        value: The value, as in a recipe.
        why: The reason, as a comment of one line. If "", there is no comment.
        is_hint: Whether the whole setting is a comment, which the user may activate.
    """

    value: Json
    why: str
    is_hint: bool = False


Draft = Mapping[str, Setting]
"""Settings by the dotted path of their field, such as "training.batch_size"."""


def run_of(draft: Draft) -> Run:
    """Return the configuration of a draft.

    Args:
        draft: The settings.

    Raises:
        ConfigError: a setting is invalid, or settings cannot be combined.
    """
    tree = apply_overrides({}, [Override(path, setting.value) for path, setting in draft.items() if not setting.is_hint])
    return decode_run(tree, "init")


def recipe_text(draft: Draft, head: list[str]) -> str:
    """Return a draft as a recipe in YAML, with a comment beside each value.

    Args:
        draft: The settings.
        head: Lines of the comment at the top.
    """
    tree: dict[str, object] = {}
    for path, setting in draft.items():
        *sections, last = path.split(".")
        here = tree
        for section in sections:
            inner = here.setdefault(section, {})
            assert isinstance(inner, dict)
            here = inner
        here[last] = setting
    lines = [f"{SCHEMA_LINE}{SCHEMA_FILES['run']}", *(f"# {line}".rstrip() for line in head)]
    for name, node in tree.items():
        lines += ["", f"{name}:", *_lines(node, "  ")] if isinstance(node, dict) else _lines({name: node}, "")
    return "\n".join(lines) + "\n"


def _lines(section: Mapping[str, object], indent: str) -> list[str]:
    lines = []
    for name, node in section.items():
        if isinstance(node, Setting):
            text = f"{indent}{'# ' if node.is_hint else ''}{name}: {_scalar(node.value)}"
            lines.append(f"{text.ljust(COLUMN)} # {node.why}" if node.why else text)
        elif isinstance(node, dict):
            lines += [f"{indent}{name}:", *_lines(node, f"{indent}  ")]
    return lines


def _scalar(value: Json) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**9, sort_keys=False, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("...").rstrip("\n")
