"""Recipes and sweeps of the study, as trees; settings.yaml has their settings."""

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from redistill.storage import files

HERE = Path(__file__).parent
Tree = dict[str, Any]
Rates = Mapping[str, float]
"""Learning rate of each method of the main comparison."""


class Plan:
    """The recipes of one size of the study.

    Args:
        size: "real" or "toy".
        work: Folder of the study.
        model: The model from which the teacher is made.
    """

    def __init__(self, size: str, work: Path, model: str) -> None:
        text = (HERE / "settings.yaml").read_text(encoding="utf-8").replace("WORK", str(work)).replace("MODEL", model)
        tree = yaml.safe_load(text)
        self.size, self.work, self.settings, self.tables = size, work, tree[size], tree

    def recipe(self, name: str) -> Tree:
        """The recipe of `teacher` or `healed`."""
        return _merged({"name": f"study-{name}", "out": str(self.work / name)}, self.settings["shared"], self.settings[name])

    def rates(self) -> Tree:
        """Every method with each learning rate and one seed; no test set is read."""
        base = self._base()
        base["data"]["tests"] = {}
        rows = {
            f"{label}-{number}": _merged(row, {"optimiser": {"learning_rate": float(rate)}})
            for label, row in self.tables["main"].items()
            for number, rate in enumerate(self.settings["rates"])
        }
        return {"name": "study-rates", "base": base, "seeds": [10], "rows": rows}

    def main(self, rates: Rates) -> Tree:
        """The main comparison: every method with the learning rate that validation chose."""
        rows = {}
        for label, row in self.tables["main"].items():
            further = {"evaluation.decodings": self.tables["decodings"]} if label in self.tables["decoded"] else {}
            rows[label] = _merged(row, {"optimiser": {"learning_rate": rates[label]}}, further)
        return self._sweep("main", rows, baseline="kd", published=["table1-gpt2"])

    def ablations(self, rates: Rates) -> Tree:
        """Parts of MGSR, exchanged one at a time."""
        base = {"optimiser": {"learning_rate": rates["mgsr"]}}
        return self._sweep("ablations", {label: _merged(row, base) for label, row in self.tables["ablations"].items()}, "none")

    def drafts(self, rates: Rates) -> Tree:
        """Draft models, by divergence."""
        base = {
            "optimiser": {"learning_rate": rates["kd"]},
            "training": {"updates": self.settings["draft_updates"]},
            "evaluation": {"teacher_forced": ["acceptance"]},
        }
        return self._sweep("drafts", {label: _merged(row, base) for label, row in self.tables["drafts"].items()}, "fkl")

    def _sweep(self, name: str, rows: Tree, baseline: str, published: list[str] | None = None) -> Tree:
        seeds = self.settings["seeds"][name]
        tree = {"name": f"study-{name}", "base": self._base(), "seeds": seeds, "baseline": baseline, "rows": rows}
        return tree if published is None else {**tree, "published": published}

    def _base(self) -> Tree:
        return _merged(self.settings["shared"], self.settings["base"])


def chosen_rates(plan: Plan, sweep: Path) -> dict[str, float]:
    """The learning rate of each method with the best validation ROUGE-L, the mean of the last half of the validations."""
    chosen = {}
    for label in plan.tables["main"]:
        scores = []
        for number, rate in enumerate(plan.settings["rates"]):
            log = files.read_lines(sweep / f"{label}-{number}-seed10" / "metrics.jsonl")
            found = [line["rouge_l"] for line in log if line["kind"] == "validation" and line["step"] > 0]
            last = found[len(found) // 2 :]
            scores.append((math.fsum(last) / len(last), float(rate)))
        chosen[label] = max(scores)[1]
    return chosen


def _merged(*trees: Tree) -> Tree:
    """A deep copy of the first tree, into which the others are merged field by field."""
    first = copy.deepcopy(trees[0])
    for tree in trees[1:]:
        for name, value in tree.items():
            inner = isinstance(value, dict) and isinstance(first.get(name), dict)
            first[name] = _merged(first[name], value) if inner else copy.deepcopy(value)
    return first
