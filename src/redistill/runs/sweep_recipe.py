"""Reads sweep recipes: merges each row and each seed over one base recipe.

A row of a sweep is a label and the settings in which its runs differ from the base.  This module neither writes files nor
starts runs; sweep.py does.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

from redistill.config import decode as decoding
from redistill.config import parse
from redistill.config.run import Run, encode_run, override_run, without_output_folders
from redistill.config.schema import current_tree
from redistill.config.shown import shown
from redistill.errors import ConfigError
from redistill.records import Json
from redistill.reports.published import published_names
from redistill.runs.demo import student_tree, world_folder
from redistill.runs.stages import stages
from redistill.storage import files

SET_BY_SWEEP = ("name", "seed", "out")
WHOLE = ("policy", "objective")  # sections that are replaced as a whole and not merged, as in any recipe


@dataclass(frozen=True, kw_only=True)
class Group:
    """A table of the comparison, with some rows of a sweep.

    Args:
        rows: Labels, in the order of the table.
        baseline: The row that the others are compared with.  If None, it is the sweep's baseline if this is in `rows`, else the
            first row.
        published: Names of published tables of the MGSR paper (arXiv 2407.10068) to show beside this one.

    Raises:
        ConfigError: there are no rows, the baseline is not one of them, or a published table is unknown.
    """

    rows: tuple[str, ...]
    baseline: str | None = None
    published: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_table(self)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep recipe: every row runs with every seed.

    Args:
        name: Name of the sweep; its folder is runs/NAME unless the command line sets another.
        rows: Label -> settings that are merged over the base.  A section is merged field by field, except `policy` and
            `objective`, which replace the whole section of the method.  A dotted key, such as `objective.span_weight`, sets one
            field.
        base: Settings of all runs, as in a recipe; or the path of a recipe, relative to the sweep recipe.
        world: If "toy", the data and the teacher are those of `redistill demo`; if None, they are those of the base.
        seeds: Training seeds.
        baseline: The row that the others are compared with; if None, it is the first row.
        published: Names of published tables of the MGSR paper (arXiv 2407.10068) to show beside the measured tables.
        groups: Tables of some of the rows, by name; if empty, there is one table of all rows.

    Raises:
        ConfigError: there are no rows or no seeds, a name is not valid in file names, a label is unknown, or a row sets the
            name, the seed or the folder.
    """

    name: str
    rows: dict[str, dict]  # type: ignore[type-arg]  # decoded by its type, which allows any mapping
    base: dict | str = field(default_factory=dict)  # type: ignore[type-arg]  # as for `rows`
    world: Literal["toy"] | None = None
    seeds: tuple[int, ...] = (10, 20, 30)
    baseline: str | None = None
    published: tuple[str, ...] = ()
    groups: dict[str, Group] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_table(self)
        for field_name, names in {"name": [self.name], "rows": self.rows, "groups": self.groups}.items():
            for name in names:
                if (usable := files.slug(name)) != name:
                    rule = f"must consist of letters, digits, '.', '_' and '-', at most {files.MAX_NAME} in all"
                    where = f"{field_name}: {shown(name)}"
                    raise ConfigError(f"{where}: {rule}, since it is part of file names; use {usable}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds = {list(self.seeds)}: must have at least one seed and no duplicates")
        for name, group in self.groups.items():
            _check_known(f"groups.{name}.rows: no row", group.rows, self.rows, "the rows are")
        for label, row in self.rows.items():
            for key in row:
                if not isinstance(key, str) or not parse.PATH.fullmatch(key):
                    rule = "must be names joined by dots, such as method, or optimiser.learning_rate"
                    raise ConfigError(f"rows.{label}: {shown(key)}: {rule}")
                if key.partition(".")[0] in SET_BY_SWEEP:
                    raise ConfigError(f"rows.{label}.{key}: the sweep sets it; remove it from the row")

    @property
    def tables(self) -> dict[str, Group]:
        """The tables of the comparison by name, each with its baseline.

        Without groups, there is one table "compare" with all rows.
        """
        groups = {f"compare-{name}": group for name, group in self.groups.items()} or {"compare": Group(rows=tuple(self.rows))}
        for name, group in groups.items():
            own = self.baseline if self.baseline in group.rows else group.rows[0]
            groups[name] = replace(group, baseline=group.baseline or own, published=group.published or self.published)
        return groups


class Cell(NamedTuple):
    """One row of a sweep with one training seed.

    Args:
        label: The row's label.
        seed: The training seed.
        tree: The settings of the run, as in a recipe, without its folder.
        overrides: Single settings that replace settings of `tree`.
    """

    label: str
    seed: int
    tree: Mapping[str, Json]
    overrides: Sequence[parse.Override]


class Entry(NamedTuple):
    """A row with a seed, and its run; rows with equal settings share one run.

    Args:
        label: The row's label.
        seed: The training seed.
        run: The validated settings of the run.
        stages: The fine-tuning stages that must finish before the run, in the order of training.
    """

    label: str
    seed: int
    run: Run
    stages: tuple[Run, ...]


def read_sweep(path: Path) -> Sweep:
    """Read a sweep recipe from a YAML file, and the base recipe if it is a path.

    Raises:
        ConfigError: a file is missing or not YAML, or a setting of the sweep is unknown, of the wrong type or out of range.
    """
    tree = current_tree(_read_yaml(path, "use the path of a sweep, such as recipes/table1-toy.yaml"), str(path))
    try:
        sweep = decoding.decode(Sweep, tree, {})
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    if isinstance(sweep.base, str):
        base = path.parent / sweep.base
        return replace(sweep, base=_read_yaml(base, f"set base in {path} to the path of a recipe"))
    return sweep


def cells(sweep: Sweep, world: Mapping[str, Json] | None = None) -> Iterator[Cell]:
    """Yield every combination of a row and a seed, row by row.

    Args:
        sweep: A sweep whose base has been read.
        world: Settings of the toy world, over which the base is merged; None if the sweep does not use the toy world.
    """
    assert isinstance(sweep.base, dict), "read_sweep reads a base that is a path"
    base = merged(world or {}, sweep.base)
    for label, row in sweep.rows.items():
        tree: Mapping[str, Json] = merged(base, {key: value for key, value in row.items() if "." not in key})
        overrides = [parse.Override(key, value) for key, value in row.items() if "." in key]
        for seed in sweep.seeds:
            yield Cell(label, seed, {**tree, "name": f"{label}-seed{seed}", "seed": seed}, overrides)


def merged(under: Mapping[str, Json], over: Mapping[str, Json]) -> dict[str, Json]:
    """Return a merged copy of two trees of settings.

    A value of `over` replaces the value of `under`.  Sections are merged field by field, but `policy` and `objective` are
    replaced as a whole.

    Example:
        >>> merged({"a": {"b": 1, "c": 2}, "policy": {"kind": "mixed"}}, {"a": {"c": 3}, "policy": "fixed"})
        {'a': {'b': 1, 'c': 3}, 'policy': 'fixed'}
    """
    both = {**under, **over}
    for key, value in over.items():
        old = under.get(key)
        if key not in WHOLE and isinstance(value, Mapping) and isinstance(old, Mapping):
            both[key] = merged(old, value)
    return both


def expand(
    sweep: Sweep, recipe: Path, folder: Path, overrides: Sequence[str] = (), allow_code: Sequence[str] = ()
) -> tuple[Entry, ...]:
    """Validate the runs of a sweep; return its entries in the order of the rows.

    Rows with equal settings share one run.

    Args:
        sweep: The result of `read_sweep(recipe)`.
        recipe: Path of the recipe, for error messages.
        folder: Folder of the sweep, the parent of the folders of runs and stages.
        overrides: Settings of every run, as `section.field=value`; they override those of the rows.
        allow_code: Modules that may be imported for external components, such as `my_module:MyDivergence`.

    Raises:
        ConfigError: a run is invalid; the message names its row.
    """
    distinct: dict[str, tuple[Run, tuple[Run, ...]]] = {}
    for_all = list(map(parse.parse_override, overrides))
    entries = []
    for cell in cells(sweep, student_tree(world_folder()) if sweep.world == "toy" else None):
        tree = {**cell.tree, "out": str(folder / f"{cell.label}-seed{cell.seed}")}
        config = override_run(tree, [*cell.overrides, *for_all], f"{recipe}: rows.{cell.label}", allow_code)
        found = distinct.setdefault(_digest(config), _with_shared_stages(config, folder / "stages"))
        entries.append(Entry(cell.label, cell.seed, *found))
    return tuple(entries)


def settings_of(tree: Mapping[str, Json]) -> dict[str, Json]:
    """Return the settings of a run without its name and its folders."""
    return {key: value for key, value in without_output_folders(tree).items() if key != "name"}


def _with_shared_stages(config: Run, folder: Path) -> tuple[Run, tuple[Run, ...]]:
    """Return a copy of a run whose stages have folders in `folder`, and these stages.

    The name of a folder contains a hash of the settings of the stage, so that runs with equal stages share them.
    """
    # The teacher first, because the student may start from layers of the fine-tuned teacher.
    for section, name in (("teacher", "teacher"), ("student", "start")):
        if name in (found := stages(config)):
            node, out = getattr(config, section), folder / f"{name}-{_digest(found[name])[:12]}"
            node = replace(node, finetune=replace(node.finetune, out=str(out)))
            config = replace(config, **{section: node})
    return config, tuple(stages(config).values())


def _digest(config: Run) -> str:
    """Return a hash of the settings of a run, except its name and its folders."""
    return hashlib.sha256(json.dumps(settings_of(encode_run(config)), sort_keys=True).encode()).hexdigest()


def _read_yaml(path: Path, remedy: str) -> dict[str, Json]:
    try:
        return parse.parse_yaml(path.read_bytes(), str(path))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; {remedy}") from error


def _check_table(table: Group | Sweep) -> None:
    if not table.rows:
        raise ConfigError("rows: empty; must have at least one row")
    _check_known("baseline: no row", [table.baseline], table.rows, "the rows are")
    _check_known("published: the paper has no table", table.published, published_names(), "choose from")


def _check_known(fault: str, names: Iterable[str | None], known: Collection[str], allowed: str) -> None:
    for name in names:
        if name is not None and name not in known:
            raise ConfigError(f"{fault} '{name}'; {allowed} {', '.join(known)}")
