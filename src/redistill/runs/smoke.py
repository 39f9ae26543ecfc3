"""A smoke test of a recipe: one update, one save and one load."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from redistill.config.run import Run
from redistill.config.sections import TeacherConfig
from redistill.errors import ConfigError
from redistill.models.load import ModelConfig, load_model, parameter_count
from redistill.processes import signals
from redistill.processes.memory import peak_growth
from redistill.runs.opened import OpenRun, check_sources, make_accelerator, open_run
from redistill.runs.run import export, fit
from redistill.runs.served import check_servers
from redistill.runs.shortened import self_contained, without_untrained_stages
from redistill.runs.stages import student_source, teacher_source
from redistill.runs.templates import dated
from redistill.storage import files
from redistill.teachers.cached import CachedTeacherConfig
from redistill.teachers.forms import Full
from redistill.training.trackers import check_packages

PROMPTS = 2
"""Number of validation prompts that are answered."""
ROWS = 256
"""Number of training rows that are tokenised; an update uses the first of them that are within the length limits."""

Report = Callable[[str], None]
Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Smoke:
    """What a smoke test did, with the measured time and memory.

    Args:
        sequences: Number of sequences of the update.
        loss: Loss of the update.
        prompts: Number of validation prompts that were answered, before and after the update.
        saved_bytes: Size of the saved student.
        parameters: Number of parameters of the student after it was loaded again.
        seconds: Seconds of each step, by name: "open" (models and data), "update", "validate" (two validations and a
            checkpoint), "save" and "load".
        peak_bytes: Growth of memory during the test; None if it cannot be measured.
        notes: What differs from a run of the recipe.
    """

    sequences: int
    loss: float
    prompts: int
    saved_bytes: int
    parameters: int
    seconds: dict[str, float]
    peak_bytes: int | None
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        """Return all fields as JSON values, in bytes and seconds."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the steps with their time and memory, as lines of text."""
        prompts = "1 prompt" if self.prompts == 1 else f"{self.prompts} prompts"
        steps = {
            "open": "models and data loaded",
            "validate": f"validation with {prompts} before and after the update; one checkpoint saved",
            "update": f"one update with {self.sequences} sequences, loss {self.loss:.4g}",
            "save": f"student saved, {self.saved_bytes / 1e6:,.1f} MB",
            "load": f"student loaded, {self.parameters:,} parameters",
        }
        lines = [f"{self.seconds[name]:8.1f} s  {text}" for name, text in steps.items()]
        if self.peak_bytes is not None:
            lines.append(f"{self.peak_bytes / 1e6:8,.0f} MB largest growth of memory")
        return [*lines, *(f"note: {note}" for note in self.notes)]


@signals.handled()
def smoke_test(run: Run, report: Report = lambda line: None, clock: Clock = time.perf_counter) -> Smoke:
    """Execute one update of a recipe, with validation, save and load of the student.

    Models, batch size and length limits are those of the recipe. All files are written to a temporary folder on the disk of
    the run folder, and removed afterwards.

    Args:
        run: The recipe.
        report: Function that is called with a line of text about a server.
        clock: Function that returns the time of a monotonic clock, in seconds.

    Raises:
        ConfigError: the job has several processes, or `redistill run` would raise the same error.
        RedistillError: any other error that the first update of `redistill run` raises.
        Interrupted: SIGTERM or SIGINT arrived.
    """
    accelerator = make_accelerator(run.training.precision)
    if accelerator.num_processes > 1:
        raise ConfigError(f"run --smoke: {accelerator.num_processes} processes: must be 1; start it without a launcher")
    check_sources(run.data)
    check_packages(run.tracking)
    check_servers(run, accelerator, report)
    parent = run.folder.absolute()
    while not parent.is_dir():
        parent = parent.parent
    with tempfile.TemporaryDirectory(prefix=".redistill-smoke-", dir=parent) as folder:
        config, notes = one_update(run, Path(folder) / "run")
        found, growth = peak_growth(partial(_execute, config, notes, clock), accelerator.device)
    return replace(found, peak_bytes=growth)


def one_update(run: Run, folder: Path) -> tuple[Run, list[str]]:
    """Return a recipe with one update and few rows, and notes on the changes.

    Args:
        run: The recipe.
        folder: Output folder of the result.
    """
    run, notes = without_untrained_stages(run, "is used")
    teacher, student = teacher_source(run) or run.teacher, student_source(run)
    if isinstance(teacher, TeacherConfig) and teacher.cache is not None:
        teacher = replace(teacher, cache=None, cache_new_text=False, cache_dtype="auto", cache_form=Full())
        notes.append("the teacher is loaded; its cache is neither read nor written")
    data, size = run.data, run.training.batch_size
    if not isinstance(teacher, CachedTeacherConfig):  # a cache has the states of all rows, in their order
        most = max(ROWS, 2 * size * getattr(run.engine, "ahead", 1))
        data = replace(data, max_train_rows=min(most, data.max_train_rows or most))
    training = replace(
        run.training, updates=1, evaluate_every=0, save_every=0, keep=1, patience=None, log_every=1, compile="none"
    )
    if run.training.compile not in ("none", "auto"):
        notes.append(f"nothing is compiled (training.compile = {run.training.compile})")
    return replace(
        run,
        out=str(folder),
        teacher=teacher,
        student=student,
        policy=self_contained(run.resolved_method.policy, size),
        data=data,
        training=training,
        tracking=replace(run.tracking, to=()),
        evaluation=replace(run.evaluation, compare=()),
    ), notes


def _execute(config: Run, notes: list[str], clock: Clock) -> Smoke:
    """Load, train, save and load again; the result has no `peak_bytes`."""
    started = clock()
    config = dated(config)
    files.make_folder(config.folder)
    with open_run(config) as opened:
        opened = _with_few_prompts(opened)
        training = clock()
        fit(opened)
        saving = clock()
        export(opened)
    loading, folder = clock(), config.folder / "model"
    student, _ = load_model(ModelConfig(model=str(folder)))
    done = clock()
    update = next(line for line in files.read_lines(config.folder / "metrics.jsonl") if line["kind"] == "train")
    return Smoke(
        sequences=config.training.batch_size,
        loss=update["loss"],
        prompts=len(opened.data.validation),
        saved_bytes=sum(path.stat().st_size for path in folder.iterdir()),
        parameters=parameter_count(student),
        seconds={
            "open": training - started,
            "validate": max(0.0, saving - training - update["seconds"]),
            "update": update["seconds"],
            "save": loading - saving,
            "load": done - loading,
        },
        peak_bytes=None,
        notes=tuple(notes),
    )


def _with_few_prompts(opened: OpenRun) -> OpenRun:
    data = opened.data
    few = replace(data, validation=data.validation[:PROMPTS], validation_examples=data.validation_examples[:PROMPTS], tests={})
    return replace(opened, data=few)
