"""Metrics and test sets by the names that a recipe gives them, those from outside the package among them.

A metric from outside is a `redistill.records.Metric`, and a test set from outside a `redistill.data.tasks.Task`. Each is an
object of a module, named `module:NAME`; the module is imported only where the user has allowed its code to run.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from redistill.config.decode import told
from redistill.config.plugins import Outside, instance
from redistill.data.tasks import Task, check_source, known_task
from redistill.errors import ConfigError
from redistill.evaluation.metrics import METRICS
from redistill.records import Metric
from redistill.storage import files

CROSS_ENTROPY = "cross_entropy"
"""What `choose_by` may be besides the metrics of validation; lower is better."""


def metric(name: str) -> Metric:
    """The metric of that name, or the object `module:NAME`.

    Raises:
        ConfigError: no such metric, or one that needs more than the text of an answer.
    """
    if ":" not in name:
        if name in METRICS:
            return METRICS[name]
        near = difflib.get_close_matches(name, METRICS, 1, 0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(METRICS)};"
        raise ConfigError(f"metrics = '{name}': no such metric; {hint} one of your own is named module:NAME")
    try:
        found = instance(name, Metric)
    except ConfigError as error:
        raise ConfigError(f"metrics = '{name}': {error}") from error
    _check_needs(found, f"metrics = '{name}'")
    return found


def metrics(names: Sequence[str]) -> tuple[Metric, ...]:
    """The metrics of these names, in their order.

    Raises:
        ConfigError: see `metric`; or two different ones have one key.
    """
    return _distinct([metric(name) for name in names], "metrics")


def named_task(name: str) -> Task:
    """The test set of that name, the object `module:NAME`, or a plain name for a file of the recipe.

    Raises:
        ConfigError: nothing is there, or its name cannot name a file.
    """
    try:
        found = instance(name, Task) if ":" in name else known_task(name)
    except ConfigError as error:
        raise ConfigError(f"tests: '{name}': {error}") from error
    if files.slug(found.name) != found.name:
        raise ConfigError(
            f"tests: {found.name!r}: a test set's name may hold letters, digits, '.', '_' and '-', since files are called "
            f"after it; call it {files.slug(found.name)}"
        )
    for own in found.metrics:
        _check_needs(own, f"tests: '{name}'")
    return found


def named_tasks(tests: Mapping[str, str | None]) -> dict[Task, str | None]:
    """The test sets that `data.tests` names, each with its file; None stands for its place on the hub.

    Raises:
        ConfigError: see `named_task`; or two have one name, or one has neither a file nor a place on the hub.
    """
    found: dict[Task, str | None] = {}
    names: dict[str, str] = {}
    for name, path in tests.items():
        task = named_task(name)
        check_source(task, path)
        if (other := names.setdefault(task.name, name)) != name:
            raise ConfigError(f"tests: '{other}' and '{name}' are both called {task.name}; rename one, or leave it out")
        found[task] = path
    return found


def metrics_of(tasks: Iterable[Task], names: Sequence[str]) -> dict[str, tuple[Metric, ...]]:
    """Test set's name -> what its answers are scored by: its own metrics first, then those that the recipe names.

    Raises:
        ConfigError: see `metrics`.
    """
    common = metrics(names)
    return {task.name: _distinct([*task.metrics, *common], f"metrics of {task.name}") for task in tasks}


def check_choice(choose_by: str, validated: Iterable[Metric], place: str) -> None:
    """See that validation computes what the best checkpoint is chosen by.

    Raises:
        ConfigError: it does not.
    """
    known = [*(metric.name for metric in validated), CROSS_ENTROPY]
    if choose_by not in known:
        near = difflib.get_close_matches(choose_by, known, 1, 0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"choose one of {', '.join(known)}"
        raise ConfigError(f"{place} = '{choose_by}': validation does not compute it; {hint}, or add it to evaluation.metrics")


def load_outside(named: Iterable[tuple[str, str]], outside: Outside) -> None:
    """Import the modules of metrics and test sets from outside the package, so that they are found by name.

    Args:
        named: (place in the recipe or on the command line, name); names without a module are skipped.
        outside: Which modules may be imported.

    Raises:
        ConfigError: a module is not allowed or cannot be imported, or has nothing of that name.
    """
    for place, name in named:
        if ":" in name:
            try:
                outside.load(name)
            except ConfigError as error:
                raise ConfigError(f"{place} = {told(name)}: {error}") from error


def names_in(tree: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(place, name) of each metric and test set in the tree of a recipe, which may not be valid."""
    held = {section: tree.get(section) for section in ("evaluation", "data")}
    evaluation, data = (value if isinstance(value, Mapping) else {} for value in held.values())
    metrics, tests = evaluation.get("metrics"), data.get("tests")
    texts = [metrics] if isinstance(metrics, str) else metrics
    for place, names in (("evaluation.metrics", texts), ("data.tests", tests)):
        if isinstance(names, list | tuple | Mapping):
            yield from ((place, name) for name in names if isinstance(name, str))


def _check_needs(found: Metric, place: str) -> None:
    if found.needs != "answers":
        raise ConfigError(
            f"{place}: the metric {found.name} needs '{found.needs}', which no evaluation provides; must be 'answers'"
        )


def _distinct(found: Sequence[Metric], place: str) -> tuple[Metric, ...]:
    """Each metric once; two different ones would share a key in files."""
    by_name: dict[str, Metric] = {}
    for one in found:
        if by_name.setdefault(one.name, one) is not one:
            raise ConfigError(f"{place}: two different metrics are called {one.name}, their key in files; rename one of them")
    return tuple(by_name.values())
