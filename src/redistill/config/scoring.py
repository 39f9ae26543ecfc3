"""Functions that find the metrics and test sets that a recipe names.

An external metric is a `redistill.records.Metric`, and an external test set is a `redistill.data.tasks.Task`. Both are named
`module:NAME`. The module is imported only if the user has allowed it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from redistill.config.plugins import External, instance
from redistill.config.shown import nearest, shown
from redistill.data.tasks import Task, check_source, known_task
from redistill.errors import ConfigError
from redistill.evaluation.metrics import METRICS
from redistill.records import Metric
from redistill.storage import files

CROSS_ENTROPY = "cross_entropy"
"""The only value of `choose_by` that is not the name of a metric of answers; a lower value is better."""


def metric(name: str) -> Metric:
    """Return the metric with this name.

    The name of an external metric has the form `module:NAME`. Its module must be imported already.

    Raises:
        ConfigError: there is no metric with this name, its module is not imported, or the metric needs more than the text of an
            answer and its record.
    """
    if ":" not in name:
        if name in METRICS:
            return METRICS[name]
        hint = nearest(name, METRICS, f"choose one of {', '.join(METRICS)};")
        raise ConfigError(f"metrics = '{name}': no such metric; {hint} an external metric is named module:NAME")
    try:
        found = instance(name, Metric)
    except ConfigError as error:
        raise ConfigError(f"metrics = '{name}': {error}") from error
    _check_needs(found, f"metrics = '{name}'")
    return found


def metrics(names: Sequence[str]) -> tuple[Metric, ...]:
    """Return the metrics with these names, in the same order and without repetitions.

    Raises:
        ConfigError: a metric cannot be returned (see `metric`), or two different metrics have the same `Metric.name`.
    """
    return _distinct([metric(name) for name in names], "metrics")


def named_task(name: str) -> Task:
    """Return the test set with this name.

    The name of an external test set has the form `module:NAME`. Its module must be imported already. Any other name that
    `redistill methods` does not list defines a new test set, whose file the recipe must give.

    Raises:
        ConfigError: there is no such external test set, the name is not a valid file name, or a metric of the test set needs
            more than the text of an answer and its record.
    """
    try:
        found = instance(name, Task) if ":" in name else known_task(name)
    except ConfigError as error:
        raise ConfigError(f"tests: '{name}': {error}") from error
    if files.slug(found.name) != found.name:
        raise ConfigError(
            f"tests: {shown(found.name)}: the name of a test set may contain letters, digits, '.', '_' and '-', and at most "
            f"{files.MAX_NAME} characters, since it is part of file names; rename it to {files.slug(found.name)}"
        )
    for own in found.metrics:
        _check_needs(own, f"tests: '{name}'")
    return found


def named_tasks(tests: Mapping[str, str | None]) -> dict[Task, str | None]:
    """Return a mapping from each test set of a recipe to its file.

    Args:
        tests: The field `data.tests`: the file of each test set by name. If the file is None, the test set is read from the
            hub.

    Raises:
        ConfigError: a test set cannot be returned (see `named_task`), two test sets have the same `Task.name`, or a test set
            has neither a file nor a hub name.
    """
    found: dict[Task, str | None] = {}
    names: dict[str, str] = {}
    for name, path in tests.items():
        task = named_task(name)
        check_source(task, path)
        if (other := names.setdefault(task.name, name)) != name:
            raise ConfigError(f"tests: '{other}' and '{name}' would both be called {task.name}; rename or remove one")
        found[task] = path
    return found


def metrics_of(tasks: Iterable[Task], names: Sequence[str]) -> dict[str, tuple[Metric, ...]]:
    """Return a mapping from the name of each test set to its metrics.

    The test set's own metrics are first. The metrics of the recipe follow.

    Args:
        tasks: The test sets.
        names: Names of the metrics of the recipe.

    Raises:
        ConfigError: a metric of `names` cannot be returned (see `metric`), or two different metrics of a test set have the same
            `Metric.name`.
    """
    common = metrics(names)
    return {task.name: _distinct([*task.metrics, *common], f"metrics of {task.name}") for task in tasks}


def check_choice(choose_by: str, validated: Iterable[Metric], path: str) -> None:
    """Check that validation computes the score that chooses the best checkpoint.

    Args:
        choose_by: Name of the score.
        validated: The metrics that validation computes.
        path: Path of the field in the recipe, for the error message.

    Raises:
        ConfigError: validation does not compute the score.
    """
    known = [*(metric.name for metric in validated), CROSS_ENTROPY]
    if choose_by not in known:
        hint = nearest(choose_by, known, f"choose one of {', '.join(known)}")
        raise ConfigError(f"{path} = '{choose_by}': validation does not compute it; {hint}, or add it to evaluation.metrics")


def load_external(named: Iterable[tuple[str, str]], external: External) -> None:
    """Import the modules of external metrics and test sets.

    After the import, `metric` and `named_task` return these metrics and test sets.

    Args:
        named: Pairs of a path and a name. The name is that of a metric or test set; names that do not have the form
            `module:NAME` are skipped. The path is that of the field or option with this name, for error messages.
        external: The modules that may be imported.

    Raises:
        ConfigError: a module is not allowed, cannot be imported, or has no such attribute.
    """
    for path, name in named:
        if ":" in name:
            try:
                external.load(name)
            except ConfigError as error:
                raise ConfigError(f"{path} = {shown(name)}: {error}") from error


def names_in(tree: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Yield the field and the name of each metric and test set of a recipe.

    An example of a pair is ("data.tests", "dolly"). The recipe may be invalid: values of the wrong type are skipped.
    """
    held = {section: tree.get(section) for section in ("evaluation", "data")}
    evaluation, data = (value if isinstance(value, Mapping) else {} for value in held.values())
    metrics, tests = evaluation.get("metrics"), data.get("tests")
    texts = [metrics] if isinstance(metrics, str) else metrics
    for path, names in (("evaluation.metrics", texts), ("data.tests", tests)):
        if isinstance(names, list | tuple | Mapping):
            yield from ((path, name) for name in names if isinstance(name, str))


def _check_needs(found: Metric, path: str) -> None:
    if found.needs != "answers":
        raise ConfigError(
            f"{path}: the metric {found.name} has needs = '{found.needs}', which no evaluation supports; must be 'answers'"
        )


def _distinct(found: Sequence[Metric], path: str) -> tuple[Metric, ...]:
    """Return the metrics without repetitions.

    A ConfigError is raised if two different metrics have the same name.
    """
    by_name: dict[str, Metric] = {}
    for each in found:
        if by_name.setdefault(each.name, each) is not each:
            raise ConfigError(
                f"{path}: two different metrics have the name {each.name}, but names are keys of result files; rename one"
            )
    return tuple(by_name.values())
