"""Functions that find the metrics and test sets that a recipe names.

An external metric is a `redistill.records.Metric`, and an external test set is a `redistill.data.tasks.Task`. Both are named
`module:NAME`. The module is imported only if the user has allowed it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from redistill.config.plugins import External, instance
from redistill.config.shown import nearest, shown
from redistill.contracts import TeacherCapabilities
from redistill.data.sources import Source
from redistill.data.tasks import Task, check_source, known_task
from redistill.errors import ConfigError
from redistill.evaluation.metrics import METRICS
from redistill.records import ACCEPTANCE, Metric
from redistill.storage import files

CROSS_ENTROPY = "cross_entropy"
"""Value of `choose_by` for the cross entropy on the answers of the validation data; a lower value is better."""
ACCEPTED = ACCEPTANCE[0]
"""Value of `choose_by` for the acceptance rate of a draft model on validation data; a higher value is better."""


def metric(name: str) -> Metric:
    """Return the metric with this name.

    The name of an external metric has the form `module:NAME`. Its module must be imported already.

    Raises:
        ConfigError: there is no metric with this name; its module is not imported; or the attribute `needs` of the metric is
            not "answers", the only supported value.
    """
    if ":" not in name:
        if name in METRICS:
            return METRICS[name]
        hint = nearest(name, METRICS, f"choose one of {', '.join(METRICS)}")
        raise ConfigError(f"metrics = '{name}': no such metric; {hint} (the name of an external metric is module:NAME)")
    try:
        found = instance(name, Metric)
    except ConfigError as error:
        raise ConfigError(f"metrics = '{name}': {error}") from error
    _check_needs(found, f"metrics = '{name}'")
    return found


def metrics(names: Sequence[str]) -> tuple[Metric, ...]:
    """Return the metrics with these names, in the same order and without repetitions.

    Raises:
        ConfigError: a metric is unknown or not supported (see `metric`), or two different metrics have the same `Metric.name`.
    """
    return _distinct([metric(name) for name in names], "metrics")


def named_task(name: str) -> Task:
    """Return the test set with this name.

    `redistill methods` lists the known names. The name of an external test set has the form `module:NAME`; its module must be
    imported already. Any other name defines a new test set. The recipe must give the file of a new test set.

    Raises:
        ConfigError: there is no such external test set; the name is not a valid file name; or the attribute `needs` of a metric
            of the test set is not "answers", the only supported value.
    """
    try:
        found = instance(name, Task) if ":" in name else known_task(name)
    except ConfigError as error:
        raise ConfigError(f"tests: '{name}': {error}") from error
    if files.slug(found.name) != found.name:
        raise ConfigError(
            f"tests: {shown(found.name)}: the name of a test set may contain letters, digits, '.', '_' and '-', and must have "
            f"at most {files.MAX_NAME} characters; rename it to {files.slug(found.name)}"
        )
    for own in found.metrics:
        _check_needs(own, f"tests: '{name}'")
    return found


def named_tasks(tests: Mapping[str, str | Source | None]) -> dict[Task, str | Source | None]:
    """Return a mapping from each test set of a recipe to its file.

    Args:
        tests: The field `data.tests`, a mapping from the name of each test set to its file. If the file is None, the test set
            is read from the hub.

    Raises:
        ConfigError: a test set is unknown or not supported (see `named_task`); two test sets have the same `Task.name`; or a
            test set has neither a file nor a hub name.
    """
    found: dict[Task, str | Source | None] = {}
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

    The metrics that a test set defines are first. The metrics that the recipe requests for all test sets follow.

    Args:
        tasks: The test sets.
        names: Names of the metrics that the recipe requests.

    Raises:
        ConfigError: a metric of `names` is unknown or not supported (see `metric`), or two different metrics of a test set have
            the same `Metric.name`.
    """
    common = metrics(names)
    return {task.name: _distinct([*task.metrics, *common], f"metrics of {task.name}") for task in tasks}


def check_choice(choose_by: str, validated: Iterable[Metric], path: str, forced: Sequence[str] = ()) -> None:
    """Check that validation computes the score by which the best checkpoint is chosen.

    Args:
        choose_by: Name of the score: that of a metric, or "cross_entropy", which validation always computes.
        validated: The metrics that validation computes.
        path: Path of the field that names the score in the recipe, for the error message.
        forced: The value of `evaluation.teacher_forced`. If `choose_by` is "acceptance", it must be in this list.

    Raises:
        ConfigError: validation does not compute the score.
    """
    known = [*(metric.name for metric in validated), CROSS_ENTROPY, *(name for name in forced if name == ACCEPTED)]
    if choose_by == ACCEPTED not in known:
        raise ConfigError(f"{path} = '{ACCEPTED}': validation does not compute it; add it to evaluation.teacher_forced")
    if choose_by not in known:
        hint = nearest(choose_by, known, f"choose one of {', '.join(known)}")
        raise ConfigError(f"{path} = '{choose_by}': validation does not compute it; {hint}, or add it to evaluation.metrics")


def check_forced(names: Sequence[str], teacher: TeacherCapabilities | None) -> None:
    """Check `evaluation.teacher_forced` against the capabilities of the teacher.

    Args:
        names: The value of `evaluation.teacher_forced`.
        teacher: Capabilities of the teacher; None if there is no teacher.

    Raises:
        ConfigError: a score is listed twice; or a score needs teacher probabilities of all classes, and no teacher provides
            them.
    """
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"teacher_forced: {name} is listed {names.count(name)} times; list each score once")
        if name in ("acceptance", "overlap") and (teacher is None or not teacher.full_vocabulary):
            have = "there is no teacher" if teacher is None else "the teacher does not provide them"
            others = " (and set training.choose_by to cross_entropy)" if name == ACCEPTED else ""
            remedy = f"use a local teacher, or remove {name}{others}"
            raise ConfigError(f"teacher_forced: {name} needs teacher logits of the whole vocabulary, and {have}; {remedy}")


def load_external(named: Iterable[tuple[str, str]], external: External) -> None:
    """Import the modules of external metrics and test sets.

    After the import, `metric` and `named_task` return these metrics and test sets.

    Args:
        named: Pairs (path, name). `name` is the name of a metric or test set. `path` is the field or option that contains the
            name, for error messages. Names without a colon are not external and are skipped.
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
    """Yield the names of all metrics and test sets of a recipe, with their fields.

    Each result is a pair of the path of the field and the name, such as ("data.tests", "dolly"). The recipe may be invalid:
    values of the wrong type are skipped.
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
            f"{path}: the metric {found.name} has needs = '{found.needs}', which no evaluation supports; use a metric "
            "with needs = 'answers'"
        )


def _distinct(found: Sequence[Metric], path: str) -> tuple[Metric, ...]:
    """Return the metrics in the same order; each metric is returned only once.

    A ConfigError, whose message starts with `path`, is raised if two different metrics have the same name.
    """
    by_name: dict[str, Metric] = {}
    for each in found:
        if by_name.setdefault(each.name, each) is not each:
            raise ConfigError(
                f"{path}: two different metrics have the name {each.name}, but names are keys of result files; rename one"
            )
    return tuple(by_name.values())
