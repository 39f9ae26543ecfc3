"""The commands that show or copy the recipes and the sample rows of the package."""

import argparse
from pathlib import Path

from redistill.cli.output import print_json, print_lines


def list_recipes(options: argparse.Namespace) -> None:
    """List the recipes of the package."""
    from redistill.config.recipes import packaged_recipes

    found = packaged_recipes().values()
    if options.json:
        about = [{"name": each.name, "kind": each.kind, "title": each.title, "command": each.command} for each in found]
        print_json(options, {"recipes": about})
        return
    for kind, heading in (("run", "recipes of a run (redistill run NAME)"), ("sweep", "sweeps (redistill sweep NAME)")):
        print_lines(heading, *(f"  {each.name}\n      {each.title}" for each in found if each.kind == kind))


def show(options: argparse.Namespace) -> None:
    """Print a recipe of the package."""
    from redistill.config.recipes import packaged_recipe

    recipe = packaged_recipe(options.name)
    text = recipe.path.read_text(encoding="utf-8")
    if options.json:
        print_json(options, {"name": recipe.name, "kind": recipe.kind, "text": text})
    else:
        print_lines(text.removesuffix("\n"))


def copy(options: argparse.Namespace) -> None:
    """Copy a recipe of the package to a file, to change it."""
    from redistill.config.recipes import packaged_recipe, place_schema
    from redistill.storage.packaged import copy_packaged

    recipe = packaged_recipe(options.name)
    target = options.out or Path(f"{recipe.name}.yaml")
    copy_packaged(recipe.path, target)
    place_schema(recipe.kind, target.parent)  # the recipe names it in its first line
    if options.json:
        print_json(options, {"path": str(target)})
    else:
        print_lines(target, f"run it with: redistill {recipe.kind} {target}")


def copy_sample(options: argparse.Namespace) -> None:
    """Copy sample rows for training and testing to a folder."""
    from redistill.data.sample import copy_sample

    paths = copy_sample(options.out)
    if options.json:
        print_json(options, {"files": list(map(str, paths))})
    else:
        print_lines(*paths)
