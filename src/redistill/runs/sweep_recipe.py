"""Reads sweep recipes, and builds a run for each row and seed.

The base of a sweep has the settings of all its runs.  A row is a label with settings; in the runs of the row, they replace
settings of the base.  This module neither writes files nor starts runs; sweep.py does.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

from redistill.config import decode as decoding
from redistill.config import parse
from redistill.config.json_schema import DOTTED, Builder, document, mapping
from redistill.config.recipes import read_recipe
from redistill.config.run import NAMES, Run, encode_run, override_run, without_outputs
from redistill.config.schema import current_tree
from redistill.config.shown import shown
from redistill.errors import ConfigError
from redistill.records import Json
from redistill.reports.published import published_names
from redistill.runs.demo import student_tree, world_folder
from redistill.runs.executors import Resources
from redistill.runs.stages import stages
from redistill.storage import files

SET_BY_SWEEP = ("name", "seed", "out")
WHOLE = ("policy", "objective")  # sections that are replaced as a whole and not merged, as in any recipe


@dataclass(frozen=True, kw_only=True)
class Group:
    """A comparison table of some rows of a sweep; a row is a label with settings.

    Args:
        rows: Labels of the rows, in the order of the table.
        baseline: Label of the row that the others are compared with.  If None, this is the baseline of the sweep, or the
            first row if the table does not contain that baseline.
        published: Names of tables in the MGSR paper (arXiv 2407.10068) to show beside this table; if empty, the tables in
            `published` of the sweep are shown.

    Raises:
        ConfigError: `rows` is empty, `baseline` is not in `rows`, or the paper has no table with a name in `published`.
    """

    rows: tuple[str, ...]
    baseline: str | None = None
    published: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_table(self)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep recipe: every row (a label with settings) is run with every seed.

    Args:
        name: Name of the sweep; its folder is runs/NAME, unless `--out` is given.
        rows: For each label, the settings in which the runs of this row differ from `base`.  A section of settings is
            merged with that of `base` field by field; `policy` and `objective` are replaced as a whole.  A dotted key, such
            as `objective.span_weight`, sets one field.
        base: Settings of all runs, as in a recipe; or the path of a recipe, relative to the sweep recipe; or, if there is no
            such file, the name of a recipe of the package.
        world: If "toy", fields that `base` does not set have the values of `redistill demo`, for example its data, teacher
            and student.  If None, these fields have the usual defaults.
        seeds: Training seeds.
        baseline: Label of the row that the others are compared with; if None, it is the first row.
        published: Names of tables in the MGSR paper (arXiv 2407.10068) to show beside the measured tables.
        groups: Comparison tables by name; if empty, there is one table of all rows.
        resources: What one run needs on a Ray or Slurm cluster.

    Raises:
        ConfigError: there are no rows or seeds; a name cannot be part of a file name; a label is unknown; or a row sets the
            name, the seed or the output folder of its runs.
    """

    name: str
    rows: dict[str, dict]  # type: ignore[type-arg]  # decoded by its type, which allows any mapping
    base: dict | str = field(default_factory=dict)  # type: ignore[type-arg]  # as for `rows`
    world: Literal["toy"] | None = None
    seeds: tuple[int, ...] = (10, 20, 30)
    baseline: str | None = None
    published: tuple[str, ...] = ()
    groups: dict[str, Group] = field(default_factory=dict)
    resources: Resources = field(default_factory=Resources)

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
        """The comparison tables by file name, with `baseline` and `published` filled in.

        The table of a group NAME is "compare-NAME".  Without groups, there is one table, "compare", with all rows.
        """
        groups = {f"compare-{name}": group for name, group in self.groups.items()} or {"compare": Group(rows=tuple(self.rows))}
        for name, group in groups.items():
            own = self.baseline if self.baseline in group.rows else group.rows[0]
            groups[name] = replace(group, baseline=group.baseline or own, published=group.published or self.published)
        return groups


class Cell(NamedTuple):
    """The settings of one row of a sweep with one seed, before they are validated.

    Args:
        label: The row's label.
        seed: The training seed.
        tree: The settings of the run as nested mappings, as in a recipe; the output folder is not set.
        overrides: The row's settings with dotted keys; each replaces one field of `tree`.
    """

    label: str
    seed: int
    tree: Mapping[str, Json]
    overrides: Sequence[parse.Override]


class Entry(NamedTuple):
    """The run of one row of a sweep with one training seed.

    A row is a label with settings.  Rows with equal settings have the same run.

    Args:
        label: The row's label.
        seed: The training seed.
        run: The validated settings of the run.
        stages: The fine-tunings of teacher and student that must finish before the run, in the order of training.
    """

    label: str
    seed: int
    run: Run
    stages: tuple[Run, ...]


def read_sweep(path: Path) -> Sweep:
    """Read a sweep recipe, and the recipe that its `base` names, if there is one.

    Args:
        path: A YAML file; or, if there is no such file, the name of a sweep of the package.

    Raises:
        ConfigError: a file is missing or not YAML, or a setting of the sweep is unknown, of the wrong type or out of range.
    """
    tree = current_tree(parse.parse_yaml(read_recipe(path), str(path)), str(path))
    if "rows" not in tree and "student" in tree:
        raise ConfigError(f"{path}: rows: missing; this is the recipe of one run, so use `redistill run`")
    try:
        sweep = decoding.decode(Sweep, tree, {})
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    if isinstance(sweep.base, str):
        try:
            text = read_recipe(Path(sweep.base), path.parent)
        except ConfigError as error:
            raise ConfigError(f"{path}: base: {error}") from error
        return replace(sweep, base=parse.parse_yaml(text, str(path.parent / sweep.base)))
    return sweep


def cells(sweep: Sweep, world: Mapping[str, Json] | None = None) -> Iterator[Cell]:
    """Yield the settings of every combination of a row and a seed, row by row.

    Args:
        sweep: The sweep; its `base` must be a mapping, as `read_sweep` returns it.
        world: Default settings, which the settings of `base` override; None if there are no default settings.
    """
    assert isinstance(sweep.base, dict), "the base must be a mapping, as read_sweep returns it"
    base = merged(world or {}, sweep.base)
    for label, row in sweep.rows.items():
        tree: Mapping[str, Json] = merged(base, {key: value for key, value in row.items() if "." not in key})
        overrides = [parse.Override(key, value) for key, value in row.items() if "." in key]
        for seed in sweep.seeds:
            yield Cell(label, seed, {**tree, "name": f"{label}-seed{seed}", "seed": seed}, overrides)


def merged(under: Mapping[str, Json], over: Mapping[str, Json]) -> dict[str, Json]:
    """Return a copy of the settings `under`, updated with the settings `over`.

    Both are nested mappings, as in a recipe.  A section that both contain is merged field by field, except that `policy` and
    `objective` are replaced as a whole.

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
    """Build and validate the run of every row and seed of a sweep.

    Args:
        sweep: The sweep, as `read_sweep` returns it.
        recipe: Path of the sweep recipe, for error messages.
        folder: Folder of the sweep, in which each run has its own folder.
        overrides: Settings of every run, as `section.field=value`; they override the settings of the rows.
        allow_code: Modules that may be imported for external components, such as `my_module:MyDivergence`.

    Returns:
        An entry for each row and seed, in the order of the rows.  Rows with equal settings have the same run.

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
    """Return the settings of a run without its name and its output folders."""
    return {key: value for key, value in without_outputs(tree).items() if key != "name"}


def _with_shared_stages(config: Run, folder: Path) -> tuple[Run, tuple[Run, ...]]:
    """Set the output folders of the stages of a run.

    A stage is a fine-tuning of the teacher or the student before the run.

    The folders are in `folder`.  The name of each contains a hash of the settings of the stage.  Therefore a stage that
    several runs need is trained only once.

    Returns:
        A copy of the run with these output folders; and the stages.
    """
    # The teacher first, because the student may start from layers of the fine-tuned teacher.
    for section, name in (("teacher", "teacher"), ("student", "start")):
        if name in (found := stages(config)):
            node, out = getattr(config, section), folder / f"{name}-{_digest(found[name])[:12]}"
            node = replace(node, finetune=replace(node.finetune, out=str(out)))
            config = replace(config, **{section: node})
    return config, tuple(stages(config).values())


def _digest(config: Run) -> str:
    """Return a hash of the settings of a run, except its name and its output folders."""
    return hashlib.sha256(json.dumps(settings_of(encode_run(config)), sort_keys=True).encode()).hexdigest()


def _check_table(table: Group | Sweep) -> None:
    if not table.rows:
        raise ConfigError("rows: empty; must have at least one row")
    _check_known("baseline: no row", [table.baseline], table.rows, "the rows are")
    _check_known("published: the paper has no table", table.published, published_names(), "choose from")


def _check_known(fault: str, names: Iterable[str | None], known: Collection[str], allowed: str) -> None:
    for name in names:
        if name is not None and name not in known:
            raise ConfigError(f"{fault} '{name}'; {allowed} {', '.join(known)}")


def sweep_schema() -> dict[str, Json]:
    """Return the JSON Schema of a sweep recipe.

    Example:
        >>> schema = sweep_schema()
        >>> schema["required"]
        ['name', 'rows']
    """
    settings, whole = Builder(NAMES, is_partial=True), Builder({})
    base = settings.section(Run)
    fields = {name: field for name, field in mapping(base["properties"]).items() if name not in SET_BY_SWEEP}
    row: dict[str, Json] = {**base, "properties": fields, "patternProperties": {DOTTED: True}}
    root = whole.section(Sweep)
    properties = mapping(root["properties"])
    is_mapping: dict[str, Json] = {"type": ["object", "string"], "if": {"type": "object"}, "then": base}
    properties["base"] = {**is_mapping, "description": mapping(properties["base"])["description"]}
    properties["rows"] = {**mapping(properties["rows"]), "minProperties": 1, "additionalProperties": row}
    definitions = {**settings.definitions, **whole.definitions}
    return document("Sweep of redistill", {**root, "properties": properties}, definitions)
