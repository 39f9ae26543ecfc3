"""Settings that differ between compared runs, and the commands of the runs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from redistill.records import Json
from redistill.reports.folders import at, mapping
from redistill.reports.lineup import NOT_THE_METHOD, Lineup
from redistill.storage.redaction import redacted_tree

NOT_SET = "not set"


@dataclass(frozen=True)
class Setting:
    """A setting whose value differs between methods.

    Args:
        name: Dotted path in the recipe, such as "training.updates".
        values: Each value as text, with the labels of the methods that have it.
    """

    name: str
    values: Sequence[tuple[str, Sequence[str]]]


def different_settings(lineup: Lineup) -> list[Setting]:
    """Return the settings that differ between the methods of a comparison.

    Seed, output folder and name are left out.  Runs of one method have equal settings, so the first run of each is read.

    Args:
        lineup: The runs.

    Returns:
        The settings in the order of the recipes.  The value of a method whose recipe has no such setting is "not set".
    """
    recipes = {label: dict(_flat(redacted_tree(_recipe(lineup, label)))) for label in lineup.labels}
    found = []
    for name in dict.fromkeys(name for recipe in recipes.values() for name in recipe):
        labels: dict[str, list[str]] = {}
        for label, recipe in recipes.items():
            labels.setdefault(recipe.get(name, NOT_SET), []).append(label)
        if len(labels) > 1:
            found.append(Setting(name, list(labels.items())))
    return found


def commands(lineup: Lineup) -> list[tuple[str, str]]:
    """Return the name and the command of each run that has recorded its command."""
    found = [(entry, entry.run.description.get("command")) for entry in lineup.entries]
    return [
        (f"{entry.label}, seed {entry.seed}", " ".join(map(str, command)) if isinstance(command, list) else str(command))
        for entry, command in found
        if command
    ]


def _recipe(lineup: Lineup, label: str) -> Mapping[str, Json]:
    """Return the settings of a method, as recorded by its first run.

    The result is empty if run.json has no valid settings.
    """
    recipe = mapping(at(lineup.of(label)[0].run.description, "config"))
    return {name: value for name, value in recipe.items() if name not in NOT_THE_METHOD}


def _flat(recipe: Mapping[str, Json], path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted path and the value of each setting, as texts."""
    for name, value in recipe.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{path}{name}.")
        elif value is not None:
            yield f"{path}{name}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
