"""Differences between the settings of two recipes."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from redistill.config import decode as decoding
from redistill.config.run import NAMES, Run, encode_run
from redistill.records import Json


class Difference(NamedTuple):
    """A setting that differs between two recipes.

    Args:
        name: Dotted path of the field, such as "training.updates".
        left: Value in the first recipe; None if it is null, or if the recipe has no such field.
        right: Value in the second recipe; None as for `left`.
    """

    name: str
    left: Json
    right: Json


def config_diff(left: Run, right: Run) -> list[Difference]:
    """Return the settings in which two recipes differ.

    A field that a recipe omits has its default value. The policy and the objective are those that each run uses: those of the
    recipe, or else those of its method.

    Args:
        left: The first recipe.
        right: The second recipe.

    Returns:
        One entry for each field that differs, in the order of the fields of a recipe.

    Example:
        >>> from redistill.config.sections import StudentConfig
        >>> run = Run(name="a", method="sft", student=StudentConfig(model="gpt2"))
        >>> other = Run(name="a", method="sft", seed=11, student=StudentConfig(model="gpt2"))
        >>> config_diff(run, other)
        [Difference(name='seed', left=10, right=11)]
    """
    here, there = (dict(_flat(resolved(run))) for run in (left, right))
    names = sorted(here.keys() | there.keys(), key=[*here, *there].index)
    return [Difference(name, here.get(name), there.get(name)) for name in names if here.get(name) != there.get(name)]


def resolved(run: Run) -> Mapping[str, Json]:
    """Return all settings of a run, including those with default values.

    The policy and the objective are those that the run uses: those of the recipe, or else those of the method.

    Args:
        run: The configuration of the run.
    """
    method = decoding.encode(run.resolved_method, NAMES)
    return {**encode_run(run), "policy": method["policy"], "objective": method["objective"]}


def _flat(tree: Mapping[str, Json], path: str = "") -> Iterator[tuple[str, Json]]:
    """Yield the dotted path and the value of each field."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value
