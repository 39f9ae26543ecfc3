"""Trackers: tools and services that receive the metrics of a run.

The file metrics.jsonl has all metrics as well.  The trackers are those of accelerate.  Nothing is sent unless a recipe
lists a tracker.  If a tracker fails, the run continues without this tracker.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from redistill.errors import ConfigError, one_line
from redistill.records import Json
from redistill.storage.redaction import plain, redacted_tree
from redistill.training.metrics import MetricsLog

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

PACKAGES = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "trackio": ("trackio",),
}
"""For each tracker, packages of which one must be installed."""
_WANDB = {
    "console": "off",
    "disable_git": True,
    "disable_code": True,
    "x_disable_meta": True,
    "x_save_requirements": False,
    "symlink": False,  # a run folder with links to folders is rejected when the run resumes
    "silent": True,
}
"""Settings with which Weights & Biases receives no output, code, command line or list of packages."""


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Trackers that receive the metrics and settings of a run.

    The file metrics.jsonl is always written as well.  These settings may change when a run is resumed.  Each tracker is
    configured by its own environment variables, such as WANDB_API_KEY and MLFLOW_TRACKING_URI.

    Args:
        to: Trackers: "tensorboard" (event files in `<run folder>/tensorboard`), "wandb" (Weights & Biases), "mlflow" and
            "trackio".  If empty, nothing is sent or written.
        project: Project in Weights & Biases and trackio, and experiment in MLflow.
        name: Name of the run in the trackers; if None, it is the run's `name`.

    Raises:
        ConfigError: a tracker is listed twice, or a name is empty.

    Example:
        >>> TrackingConfig(to=("tensorboard",)).project
        'redistill'
    """

    to: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ()
    project: str = "redistill"
    name: str | None = None

    def __post_init__(self) -> None:
        if len(set(self.to)) < len(self.to):
            raise ConfigError(f"to = {list(self.to)}: lists a tracker twice; list each tracker once")
        for name in ("project", "name"):
            if getattr(self, name) == "":
                raise ConfigError(f"{name}: empty; must be a name")


def check_packages(config: TrackingConfig) -> None:
    """Check that the packages of all trackers are installed.

    Raises:
        ConfigError: a package is missing; the message names it.
    """
    for tracker in config.to:
        if not any(find_spec(package) for package in PACKAGES[tracker]):
            package = PACKAGES[tracker][0]
            raise ConfigError(
                f"tracking.to: {tracker} needs the package {package}, which is not installed; install it (pip install "
                f"{package}), or remove it from tracking.to"
            )


@contextmanager
def tracked(
    config: TrackingConfig,
    log: MetricsLog,
    *,
    name: str,
    settings: Mapping[str, Json],
    step: int,
    note: Callable[[str], None],
) -> Iterator[None]:
    """Context in which the lines of a log are also sent to trackers.

    Numbers of train and validation lines are sent, with names such as `train/loss`.

    Args:
        config: The trackers.
        log: metrics.jsonl of the run.
        name: Name of the run.
        settings: Settings of the run, which the trackers show; secrets are masked.
        step: Number of updates done before the context.
        note: Function that is called with one line for each tracker that fails.  A failed tracker receives nothing
            afterwards.
    """
    trackers = _Trackers(note)
    for tracker in config.to:
        trackers.start(tracker, config, config.name or name, log.path.parent, step)
    trackers.each(lambda tracker: tracker.store_init_configuration(flat(redacted_tree(settings))))
    log.observer = trackers.send
    try:
        yield
    finally:
        log.observer = None
        trackers.each(lambda tracker: tracker.finish())


class _Trackers:
    """The trackers that have not failed."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._running: dict[str, GeneralTracker] = {}

    def start(self, tracker: str, config: TrackingConfig, name: str, folder: Path, step: int) -> None:
        """Start a tracker; report an error of the tracker as a note."""
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        with self._dropped_if_it_fails(tracker):
            project, make = config.project, LOGGER_TYPE_TO_CLASS[tracker]
            started: GeneralTracker = {
                "tensorboard": lambda: make("tensorboard", logging_dir=folder, purge_step=step + 1),
                "wandb": lambda: make(project, name=name, group=name, dir=str(folder), settings=_WANDB),
                "mlflow": lambda: make(project, run_name=name),
                "trackio": lambda: make(project, name=name),
            }[tracker]()
            started.start()
            self._running[tracker] = started

    def send(self, line: Mapping[str, Json]) -> None:
        """Send the numbers of a line of metrics.jsonl; lines of events are not sent."""
        step, kind = line.get("step"), line.get("kind")
        if kind not in ("train", "validation") or not isinstance(step, int):
            return
        values = {key: value for key, value in line.items() if key not in ("step", "kind")}
        numbers = {f"{kind}/{key}": value for key, value in flat(values, "/").items() if isinstance(value, int | float)}
        self.each(lambda tracker: tracker.log(numbers, step=step))

    def each(self, call: "Callable[[GeneralTracker], object]") -> None:
        """Call a function with each tracker; drop trackers for which the call fails."""
        for name, tracker in list(self._running.items()):
            with self._dropped_if_it_fails(name):
                call(tracker)

    @contextmanager
    def _dropped_if_it_fails(self, tracker: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - each tracker raises exceptions of its own
            self._running.pop(tracker, None)
            self._note(f"note: tracking: {tracker} failed and is not used any more: {plain(one_line(error))[:300]}")


def flat(tree: Mapping[str, Json], separator: str = ".") -> dict[str, str | int | float | bool]:
    """Return the values of nested mappings by their paths.

    A value that is neither a number nor a text is returned as text.

    Example:
        >>> flat({"training": {"updates": 4, "patience": None}, "betas": [0.9, 0.99]})
        {'training.updates': 4, 'training.patience': 'null', 'betas': '[0.9, 0.99]'}
    """
    found: dict[str, str | int | float | bool] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= {f"{key}{separator}{inner}": item for inner, item in flat(value, separator).items()}
        else:
            found[key] = value if isinstance(value, str | int | float) else "null" if value is None else str(value)
    return found
