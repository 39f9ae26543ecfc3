"""The run or recipe that `redistill inspect` examines, and its models.

For a run, the student has the weights of a checkpoint or, without a checkpoint, the exported weights.  For a recipe, the
student is untrained.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from redistill.config.capabilities import why_gold
from redistill.config.run import Run, load_config, with_template_date
from redistill.config.sections import TeacherConfig
from redistill.data.chat import fixed_date
from redistill.errors import CheckpointError, ConfigError
from redistill.generation.local import LocalEngineConfig
from redistill.interfaces import Tokenizer
from redistill.models.load import load_tokenizer
from redistill.reports.folders import at, number
from redistill.runs.folder import RUN_FILE, has_model
from redistill.runs.load import DataSets, load_data
from redistill.runs.models import load_models
from redistill.runs.opened import OpenRun, assemble, make_accelerator
from redistill.runs.stages import stages, student_source, teacher_source
from redistill.storage import files
from redistill.training import checkpoint
from redistill.training.progress import Progress
from redistill.training.saving import load_weights

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A run or recipe to examine.

    Args:
        name: The run folder or recipe, as the user named it.
        config: The settings.  If the recipe fine-tunes the teacher or the student first, the settings load the fine-tuned model
            instead, if it exists.
        folder: The run folder; None for a recipe.
        missing: Names of the fine-tunings ("teacher", "start") whose model does not exist.
        report: Function that is called with the name of each phase when it starts.
    """

    name: str
    config: Run
    folder: Path | None
    missing: Sequence[str]
    report: Report

    def tokenizer(self) -> Tokenizer:
        """Load the student's tokenizer."""
        source = self.config.student
        teacher = self.config.teacher
        return load_tokenizer(teacher if source.model == "teacher" and isinstance(teacher, TeacherConfig) else source)

    def data(self, tokenizer: Tokenizer) -> tuple[Run, DataSets]:
        """Read and tokenise the data; return them with the settings that were used.

        If the chat template prints a date and the recipe sets none, the settings have the current date.
        """
        self.report("reading the data")
        config = with_template_date(self.config, fixed_date(tokenizer, self.config.data.tokens.template_date))
        needs_gold = why_gold(config.resolved_method)
        return config, load_data(config.data, tokenizer, config.seed, why_gold=needs_gold, rejected=None, report=_silent)


def find_subject(name: Path, overrides: Sequence[str], allow_code: Sequence[str], report: Report) -> Subject:
    """Return the run or recipe that the user names.

    Args:
        name: A run folder, a recipe file, or the name of a recipe of the package.
        overrides: Settings to change, each as `section.field=value`.
        allow_code: Modules that may be imported for external components.
        report: Function that is called with the name of each phase when it starts.

    Raises:
        ConfigError: there is no such run or recipe, or a setting is invalid.
    """
    is_run = (name / RUN_FILE).is_file()
    if name.is_dir() and not is_run:
        raise ConfigError(f"{name}: has no {RUN_FILE}; name a run folder, or a recipe")
    config = load_config(name / RUN_FILE if is_run else name, overrides, allow_code)
    if is_run and _missing(config):  # the folder may have been moved, with the folders of its fine-tunings
        config = replace(config, out=str(name))
    missing = _missing(config)
    for stage in () if is_run else missing:
        report(f"stage {stage}: is not trained yet; the model is used without this fine-tuning")
    folder = name if is_run else None
    return Subject(name=str(name), config=_without_stages(config, missing), folder=folder, missing=missing, report=report)


def _missing(config: Run) -> list[str]:
    """Return the names of the fine-tunings of a run that have produced no model."""
    return [name for name, stage in stages(config).items() if not has_model(stage.folder)]


def _without_stages(config: Run, missing: Sequence[str]) -> Run:
    """Return settings that load the fine-tuned teacher and student directly.

    In these settings, the teacher is not cached.  For a fine-tuning in `missing`, the original model is loaded.
    """
    teacher, student = config.teacher, config.student
    if isinstance(teacher, TeacherConfig):
        tuned = replace(teacher, finetune=None) if "teacher" in missing else teacher_source(config)
        teacher = None if tuned is None else replace(tuned, cache=None)
    student = replace(student, finetune=None, start="base") if "start" in missing else student_source(config)
    return replace(config, teacher=teacher, student=student)


# --- models -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Opened:
    """The models of a subject, on their device and in evaluation mode.

    Args:
        run: The run, whose output folder is a temporary folder.
        step: Number of updates after which the student's weights were saved; 0 if it is unknown.
        student: Where the student's weights come from, such as "checkpoint step-40".
    """

    run: OpenRun
    step: int
    student: str


@contextmanager
def opened(subject: Subject, data: tuple[Run, DataSets], step: int | None = None) -> Iterator[Opened]:
    """Context in which the models of a run or recipe are loaded.

    The student has the weights of the newest checkpoint.  Without a checkpoint, it has the weights of the exported student.
    Without an exported student, it has the weights before training.

    Args:
        subject: The run or recipe.
        data: Settings and data, as `Subject.data` returns them.
        step: Number of updates of the checkpoint to load; None for the newest one.

    Raises:
        CheckpointError: the checkpoint, or a fine-tuned model of the run, does not exist or is damaged.
        ConfigError: the teacher is not a model that this process loads.
        ModelError, VocabularyError: the models cannot be used.
    """
    config = data[0]
    if config.teacher is not None and not isinstance(config.teacher, TeacherConfig):
        raise ConfigError(f"{subject.name}: teacher.kind: must be a local model; use a recipe with teacher.model")
    if subject.folder is not None and subject.missing:
        names = " and ".join("student" if name == "start" else name for name in subject.missing)
        raise CheckpointError(f"{subject.name}: the fine-tuned {names} does not exist; restore its folder")
    found = None
    if subject.folder is not None:
        checkpoints = subject.folder / "checkpoints"
        found = checkpoint.load(checkpoints) if step is None else checkpoint.load_step(checkpoints, step)
    elif step is not None:
        raise ConfigError(f"{subject.name}: a recipe has no checkpoints; name a run folder, or leave out --checkpoint")
    is_trained = found is None and subject.folder is not None and has_model(subject.folder)
    if is_trained and subject.folder is not None:
        config = _with_trained_student(config, subject.folder)
    subject.report("loading the models")
    with TemporaryDirectory() as temporary:
        training = replace(config.training, compile="none")
        config = replace(config, out=temporary, engine=LocalEngineConfig(), training=training)
        models = load_models(config)
        run = assemble(config, make_accelerator(training.precision), models, data[1], Progress(enabled=False))
        if found is not None:
            load_weights(run.student, found)
        run.student.eval()
        student = "before training" if found is None else f"checkpoint step-{found.step}"
        updates = _updates(subject.folder) if is_trained else 0
        yield Opened(
            run=run, step=updates if found is None else found.step, student="trained student" if is_trained else student
        )


def _with_trained_student(config: Run, folder: Path) -> Run:
    """Return settings that load the exported student of a run."""
    student = replace(
        config.student, model=str(folder / "model"), revision=None, adapter=None, initialise=None, lora=None, start="base"
    )
    return replace(config, student=student)


def _updates(folder: Path | None) -> int:
    """Return the number of updates in run.json; 0 if it is missing."""
    updates = None if folder is None else number(at(files.read_json(folder / RUN_FILE), "cost", "updates"))
    return 0 if updates is None else int(updates)


def check_row(subject: Subject, row: int, count: int) -> None:
    """Check that a training example exists.

    Raises:
        ConfigError: `row` is not below the number of training examples, `count`.
    """
    if row >= count:
        raise ConfigError(
            f"{subject.name}: --row {row}: there are {count} training examples; choose a row from 0 to {count - 1}"
        )


def run_folder(subject: Subject) -> Path:
    """Return the run folder of a subject.

    Raises:
        CheckpointError: the subject is a recipe.
    """
    if subject.folder is None:
        raise CheckpointError(f"{subject.name}: is a recipe; name a run folder")
    return subject.folder


def _silent(line: str) -> None:
    """Print nothing."""
