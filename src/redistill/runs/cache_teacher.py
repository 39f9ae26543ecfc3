"""The Python API of `redistill cache-teacher`: stores a teacher's hidden states."""

from dataclasses import replace
from pathlib import Path

from redistill.config.run import Run
from redistill.config.sections import TeacherConfig
from redistill.errors import ConfigError
from redistill.processes import signals
from redistill.runs.opened import make_accelerator
from redistill.runs.run import train_student
from redistill.runs.stages import stages
from redistill.runs.teacher_cache import fill_cache
from redistill.runs.templates import dated
from redistill.storage.paths import check_path
from redistill.teachers.store import TeacherStore
from redistill.training.progress import report


@signals.handled()
def cache_teacher(config: Run, out: Path, *, stream_layers: bool = False) -> TeacherStore:
    """Store the last hidden states of a recipe's teacher.

    The hidden states from which the tokens of the answers in the training and validation data are predicted are stored.
    The output head of the teacher is stored as well, so that runs with `teacher: {kind: cached, path: OUT}` need no teacher
    in memory.  An interrupted call is resumed by the same call.  If the recipe fine-tunes the teacher, the teacher is
    trained first.

    Args:
        config: The run.
        out: The folder to write.
        stream_layers: Whether the teacher's layers are read from disk one after another, for a teacher that is larger than
            the memory.  This setting does not change the bits of the resulting folder.

    Returns:
        The store.

    Raises:
        ConfigError: the recipe names no model for the teacher, the method cannot use a cached teacher, or the folder
            contains other files.
        BusyError: another process fills the folder.
        DiskFullError: there is too little free space.
        DataError, ModelError, VocabularyError: the models or the data cannot be used.
        Interrupted: SIGTERM or SIGINT arrived; the same call resumes.

    Example:
        >>> from redistill.config.run import load_config
        >>> store = cache_teacher(load_config(Path("smollm2-dolly"), ["method=kd"]), Path("c"))  # doctest: +SKIP
        >>> store.layout.width  # doctest: +SKIP
        576
    """
    if not isinstance(config.teacher, TeacherConfig):
        raise ConfigError("teacher: has no model whose states could be stored; set teacher.kind to local, and teacher.model")
    accelerator = make_accelerator(config.training.precision)
    if accelerator.num_processes > 1:
        raise ConfigError("cache-teacher: was started in several processes; start it in one process, without torchrun")
    check_path(out)
    cached = replace(config, teacher=replace(config.teacher, cache=str(out)))
    if (stage := stages(cached).get("teacher")) is not None:
        train_student(stage)
    fill_cache(dated(cached), accelerator, report, stream_layers=stream_layers)
    return TeacherStore.open(out, report=report, poll=signals.poll)
