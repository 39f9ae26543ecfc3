"""Sweep recipes: rows and seeds laid over one recipe, and the runs that they expand to.

Nothing is written or run here; sweep.py does that.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from redistill.config import decode as decoding
from redistill.config.run import Run, encode_run, override_run, without_output_folders
from redistill.config.schema import current_tree
from redistill.errors import ConfigError
from redistill.reports.published import published_names
from redistill.runs.demo import student_tree, world_folder
from redistill.runs.stages import stages
from redistill.storage import files

SET_BY_SWEEP = ("name", "seed", "out")
WHOLE = ("policy", "objective")  # sections that replace the method's own as a whole, as in any recipe


@dataclass(frozen=True, kw_only=True)
class Group:
    """One table out of a sweep's rows.

    Args:
        rows: Labels, in the order of the table.
        baseline: The row that the others are compared with; None takes the sweep's where it is in this table, else the first.
        published: Tables of the paper to show beside this one.

    Raises:
        ConfigError: no row, a baseline that is none of them, or no such table of the paper.
    """

    rows: tuple[str, ...]
    baseline: str | None = None
    published: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.rows:
            raise ConfigError("rows: empty; name at least one")
        _check_labels("baseline", () if self.baseline is None else (self.baseline,), self.rows)
        _check_published(self.published)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep recipe: every row runs with every seed.

    Args:
        name: What the sweep is called; its folder is runs/NAME unless the command line names another.
        rows: Label -> what the row lays over the base: sections, which merge field by field, or dotted keys, which change one
            setting each.  `policy` and `objective` replace the method's as a whole; `objective.span_weight` changes one field.
        base: What all runs have in common, as in a recipe; or the path of a recipe, seen from this file.
        world: "toy" takes data and teacher of `redistill demo`; None leaves them to the base.
        seeds: Training seeds.
        baseline: The row that the others are compared with; None takes the first.
        published: Tables of the paper to show beside the measured one.
        groups: Several tables out of one sweep, by name; none makes one table of all rows.

    Raises:
        ConfigError: no row, no seed, a name that cannot name a file, an unknown label, or a row that sets what the sweep sets.
    """

    name: str
    rows: dict[str, dict]
    base: dict | str = field(default_factory=dict)
    world: Literal["toy"] | None = None
    seeds: tuple[int, ...] = (10, 20, 30)
    baseline: str | None = None
    published: tuple[str, ...] = ()
    groups: dict[str, Group] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.rows:
            raise ConfigError("rows: empty; name at least one")
        for place, names in {"name": [self.name], "rows": self.rows, "groups": self.groups}.items():
            for name in names:
                if files.slug(name) != name:
                    raise ConfigError(
                        f"{place}: {name!r}: may hold letters, digits, '.', '_' and '-', since files are called after it; "
                        f"call it {files.slug(name)}"
                    )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds = {list(self.seeds)}: must be at least one, and all different")
        _check_labels("baseline", () if self.baseline is None else (self.baseline,), self.rows)
        _check_published(self.published)
        for name, group in self.groups.items():
            _check_labels(f"groups.{name}.rows", group.rows, self.rows)
        for label, row in self.rows.items():
            _check_row(label, row)

    @property
    def tables(self) -> dict[str, Group]:
        """The tables to make, each with its baseline; one of all rows is called "compare"."""
        groups = {f"compare-{name}": group for name, group in self.groups.items()} or {"compare": Group(rows=tuple(self.rows))}
        return {name: self._completed(group) for name, group in groups.items()}

    def _completed(self, group: Group) -> Group:
        own = self.baseline if self.baseline in group.rows else group.rows[0]
        return replace(group, baseline=group.baseline or own, published=group.published or self.published)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One row with one seed.

    Args:
        tree: A run, but for `overrides` and its folder.
        overrides: Settings to change in it, as `section.field=value`.
    """

    label: str
    seed: int
    tree: Mapping[str, Any]
    overrides: Sequence[str]

    @property
    def name(self) -> str:
        """What the run and its folder are called."""
        return f"{self.label}-seed{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A row with a seed, and its run; rows whose settings are the same share one.

    Args:
        stages: Fine-tunings that come before the run, in order.
    """

    label: str
    seed: int
    run: Run
    stages: tuple[Run, ...]


def read_sweep(path: Path) -> Sweep:
    """The sweep that a YAML file describes; a base that it names is read too.

    Raises:
        ConfigError: a file is missing or not YAML, or anything in the sweep is unknown, mistyped or out of range.
    """
    tree = current_tree(_read_yaml(path, "give the path of a sweep, such as recipes/table1-toy.yaml"), str(path))
    try:
        sweep = decoding.decode(Sweep, tree, {})
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    if isinstance(sweep.base, str):
        base = path.parent / sweep.base
        return replace(sweep, base=_read_yaml(base, f"{path} names it as its base"))
    return sweep


def cells(sweep: Sweep, world: Mapping[str, Any] | None = None) -> Iterator[Cell]:
    """Every row with every seed, row by row.

    Args:
        world: A tree that lies under the base: the toy world's.
    """
    assert isinstance(sweep.base, dict), "read_sweep reads a base that is a path"
    base = merged(world or {}, sweep.base)
    for label, row in sweep.rows.items():
        tree = merged(base, {key: value for key, value in row.items() if "." not in key})
        overrides = [f"{key}={json.dumps(value, default=str)}" for key, value in row.items() if "." in key]
        for seed in sweep.seeds:
            cell = Cell(label=label, seed=seed, tree=tree, overrides=overrides)
            yield replace(cell, tree={**tree, "name": cell.name, "seed": seed})


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid upon `under`: sections merge field by field, but `policy` and `objective` replace as a whole.

    Example:
        >>> merged({"a": {"b": 1, "c": 2}, "policy": {"kind": "mixed"}}, {"a": {"c": 3}, "policy": "fixed"})
        {'a': {'b': 1, 'c': 3}, 'policy': 'fixed'}
    """
    both = {
        key: merged(under[key], value)
        for key, value in over.items()
        if key not in WHOLE and isinstance(value, Mapping) and isinstance(under.get(key), Mapping)
    }
    return {**under, **over, **both}


def expand(
    sweep: Sweep, recipe: Path, folder: Path, overrides: Sequence[str] = (), allow_code: Sequence[str] = ()
) -> tuple[Entry, ...]:
    """The entries of a sweep, row by row, each run decoded; rows whose settings are the same share one run.

    Args:
        sweep: What `read_sweep` returned for `recipe`.
        recipe: Named at the front of error lines.
        folder: Of the sweep: runs and their stages get folders in it.
        overrides: Settings to change in every run, as `section.field=value`; they win over the rows.
        allow_code: Modules whose code may run where the recipe names a part of them, as `my_module:MyDivergence`.

    Raises:
        ConfigError: a mistake in one of the runs, named with its row.
    """
    distinct: dict[str, tuple[Run, tuple[Run, ...]]] = {}
    entries = []
    for cell in cells(sweep, student_tree(world_folder()) if sweep.world == "toy" else None):
        tree = {**cell.tree, "out": str(folder / cell.name)}
        config = override_run(tree, [*cell.overrides, *overrides], f"{recipe}: rows.{cell.label}", allow_code)
        found = distinct.setdefault(_digest(config), _with_shared_stages(config, folder / "stages"))
        entries.append(Entry(label=cell.label, seed=cell.seed, run=found[0], stages=found[1]))
    return tuple(entries)


def settings_of(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of a run without its name and its folders."""
    return {key: value for key, value in without_output_folders(tree).items() if key != "name"}


def _with_shared_stages(config: Run, folder: Path) -> tuple[Run, tuple[Run, ...]]:
    """The run with each fine-tuning before it in a folder named by what it depends on, and those fine-tunings in order."""
    for section, name in (("teacher", "teacher"), ("student", "start")):  # the start may be made of the tuned teacher
        stage = stages(config).get(name)
        if stage is not None:
            config = _with_stage_folder(config, section, folder / f"{name}-{_digest(stage)[:12]}")
    return config, tuple(stages(config).values())


def _with_stage_folder(config: Run, section: str, folder: Path) -> Run:
    node = getattr(config, section)
    finetune = replace(node.finetune, out=str(folder))
    return replace(config, **{section: replace(node, finetune=finetune)})


def _digest(config: Run) -> str:
    """The same for runs that differ only in name and folder."""
    return hashlib.sha256(json.dumps(settings_of(encode_run(config)), sort_keys=True).encode()).hexdigest()


def _read_yaml(path: Path, remedy: str) -> dict[str, Any]:
    try:
        return decoding.parse_yaml(path.read_bytes(), str(path))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; {remedy}") from error


def _check_labels(place: str, labels: Sequence[str], rows: Sequence[str] | Mapping[str, Any]) -> None:
    unknown = [label for label in labels if label not in rows]
    if unknown:
        raise ConfigError(f"{place}: no row '{unknown[0]}'; the rows are {', '.join(rows)}")


def _check_published(tables: Sequence[str]) -> None:
    known = published_names()
    unknown = [name for name in tables if name not in known]
    if unknown:
        raise ConfigError(f"published: no table '{unknown[0]}' of the paper; choose from {', '.join(known)}")


def _check_row(label: str, row: Mapping[Any, Any]) -> None:
    for key in row:
        if not isinstance(key, str):
            raise ConfigError(f"rows.{label}: {key!r}: must be text, such as method, or optimiser.learning_rate")
        if key in SET_BY_SWEEP:
            raise ConfigError(f"rows.{label}.{key}: is set by the sweep itself; leave it out")
