"""Checks that a run folder belongs to a run, and locks it for one job."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator

from redistill import __version__
from redistill.config.run import Run, encode_run, up_to_date, with_template_date, without_length, without_outputs
from redistill.config.schema import SCHEMA, schema_of_run, writer_of
from redistill.config.shown import line, shown
from redistill.errors import CheckpointError, ConfigError, OutputError, RedistillError
from redistill.evaluation.folder import RESPONSES
from redistill.models.load import ModelConfig
from redistill.processes import watch as ranks
from redistill.records import Json
from redistill.reports.folders import at, mapping
from redistill.storage import files, folders
from redistill.storage.lock import locked
from redistill.training.lengths import longer

RUN_FILE = "run.json"
TRAINED, FINISHED = "trained", "finished"
"""Values of "status" in run.json: the student is trained but not evaluated, or both trained and evaluated."""
WORTH_KEEPING = (RUN_FILE, "rejected.jsonl")
"""Names of files.  The run folder of a failed run is removed, unless the folder contains one of them."""


def check_owner(config: Run) -> bool:
    """Check that the run folder, if it exists, belongs to this run.

    Returns:
        True if the folder contains a student that was trained with all updates of the run.  False if the run has not
        started or has not ended, or if its student was trained with fewer updates and can be trained further.

    Raises:
        ConfigError: the folder contains another run, or the same run with more updates; the folder has checkpoints or a
            model, but no run.json; or run.json has a schema (version of the file format) that this version of redistill
            cannot use.
        CheckpointError: run.json is not a JSON object.
        OutputError: the folder cannot be read.
    """
    folder = config.folder
    held = _held(folder)
    if held is None:
        return False
    is_trained = held.get("status") in (TRAINED, FINISHED) and has_model(folder)
    check_run_schema(folder, held, resumes=not is_trained)
    mine, theirs = map(without_outputs, compared(config, held))
    if is_extension(mine, theirs):
        check_run_schema(folder, held, resumes=True)
        return False
    if different := sorted(differences(mine, theirs)):
        more = f", and {len(different) - 1} more fields differ" if len(different) > 1 else ""
        if without_length(mine) == without_length(theirs):
            more = ", and the number of updates can only be raised"
        raise ConfigError(f"{folder}: contains another run ({different[0]}{more}); choose another `out`, or remove the folder")
    return is_trained


def compared(config: Run, held: Mapping[str, object]) -> tuple[dict[str, Json], dict[str, Json]]:
    """Return the settings of a run, and the settings in a run folder, to compare them.

    If the recipe sets no date for the chat template, the date is that of the run folder.  The placement of both is that of the
    run, since a run may resume with another placement.

    Args:
        config: The run.
        held: The content of run.json in the folder.
    """
    stored = mapping(held.get("config"))
    config = with_template_date(config, at(stored, "data", "tokens", "template_date"))
    return encode_run(config), {**up_to_date(stored), "placement": config.placement}


def is_extension(mine: Mapping[str, Json], theirs: Mapping[str, Json]) -> bool:
    """Return whether two runs differ only in `training.updates`.

    The value must be larger in `mine`.  If one of the two is a number of updates and the other a number of epochs, the result
    is True, and `extend` compares them after the data have been read.

    Args:
        mine: Settings of the run.
        theirs: Settings of the run in the folder.

    Example:
        >>> is_extension({"training": {"updates": "5 epochs"}}, {"training": {"updates": "3 epochs"}})
        True
        >>> is_extension({"training": {"updates": 200}}, {"training": {"updates": 400}})
        False
    """
    new, old = (at(tree, "training", "updates") for tree in (mine, theirs))
    if new == old or without_length(mine) != without_length(theirs):
        return False
    return longer(new, old) is not False


def differences(mine: object, theirs: object, path: str = "") -> list[str]:
    """Describe each field in which two nested mappings of settings differ.

    Args:
        mine: Settings whose values the descriptions call "here".
        theirs: Settings whose values the descriptions call "there".
        path: Prefix of the names of the fields, without the final dot; used by the recursion.

    Returns:
        One phrase for each field that differs, in the order of the fields; empty if the settings are equal.

    Example:
        >>> differences({"seed": 1, "data": {"train": ["a"]}}, {"seed": 2, "data": {"train": ["a"]}})
        ['seed is 2 there and 1 here']
    """
    if mine == theirs:
        return []
    here, there = (tree if isinstance(tree, Mapping) else {} for tree in (mine, theirs))
    found = (
        differences(here.get(name), there.get(name), line(f"{path}.{name}".strip(".")))
        for name in dict.fromkeys((*here, *there))
    )
    phrases = [phrase for several in found for phrase in several]
    return phrases or [f"{path} is {shown(theirs)} there and {shown(mine)} here"]


def check_run_schema(folder: Path, held: Mapping[str, object], *, resumes: bool) -> None:
    """Check that this version of redistill can use a run folder.

    The schema is the version number of the format of run.json.

    Args:
        folder: The run folder.
        held: The content of its run.json.
        resumes: Whether training would resume in the folder.  If False, the run is only evaluated and reported, and an
            older schema is allowed.

    Raises:
        ConfigError: the schema is newer than that of this version; or it is older, and `resumes` is True.
    """
    number = schema_of_run(held, str(folder / RUN_FILE))
    if resumes and number < SCHEMA:
        names = {"redistill": writer_of(held), "commit": held.get("commit")}
        writer = ", ".join(f"{name} {shown(value)}" for name, value in names.items() if isinstance(value, str))
        finished = "a shorter run" if has_model(folder) else "a run without its model"
        what = finished if held.get("status") == FINISHED else "an unfinished run"
        raise ConfigError(
            f"{folder}: contains {what} of schema {number}; redistill {__version__} resumes schema {SCHEMA} only; "
            f"finish the run with the version that wrote it ({writer or 'not recorded'}), or choose another `out`"
        )


def _held(folder: Path) -> Mapping[str, object] | None:
    """Return the content of run.json in `folder`; None if there is no run.

    Raises:
        CheckpointError: run.json is not a JSON object.
        ConfigError: the folder contains checkpoints or a model, but no run.json.
        OutputError: the folder cannot be read.
    """
    try:
        if (folder / RUN_FILE).exists():
            held = files.read_json(folder / RUN_FILE)
            if not isinstance(held, dict):
                raise CheckpointError(f"{folder / RUN_FILE}: is not a JSON object; choose another `out`, or remove the folder")
            return held
        leftovers = [name for name in ("checkpoints", "model") if (folder / name).exists()]
    except OSError as error:
        raise OutputError(f"{folder}: cannot be read ({error.strerror}); choose another output folder") from error
    if leftovers:
        raise ConfigError(
            f"{folder}: contains {' and '.join(leftovers)} but no {RUN_FILE}, so it does not belong to this run; "
            "choose another `out`, or remove the folder"
        )
    return None


def of_run(model: ModelConfig) -> ModelConfig:
    """Return `model`; if it names a run folder, return the student of this run."""
    is_run = (Path(model.model) / RUN_FILE).is_file()
    return replace(model, model=str(Path(model.model) / "model")) if is_run else model


def has_model(folder: Path) -> bool:
    """Return whether a run folder has an exported student: a model, or only adapters."""
    return any((folder / "model" / name).exists() for name in ("config.json", "adapter_config.json"))


@contextmanager
def sole_use(folder: Path, accelerator: Accelerator, *worth_keeping: str) -> Iterator[None]:
    """Context in which only this job uses an output folder.

    The main process creates and locks the folder, for all processes of the job, and removes temporary files that interrupted
    writes have left in it.

    Args:
        folder: The output folder.
        accelerator: The accelerator of the job; it determines the main process.
        worth_keeping: Names of files.  If the context ends with a RedistillError, a folder that the context created is
            removed, unless the folder contains one of these files.

    Raises:
        BusyError: another job holds the lock.
        OutputError: the folder is not writable, or a folder in it is a symbolic link.
    """
    existed = folder.exists()
    with ranks.watched(), ExitStack() as held:  # also covers the time between the inner `watched` blocks
        if accelerator.is_main_process:
            held.enter_context(locked(folder))
            _sweep(folder)
        accelerator.wait_for_everyone()
        try:
            yield
        except RedistillError:
            if not existed and not any((folder / name).exists() for name in worth_keeping):
                shutil.rmtree(folder, ignore_errors=True)
            raise


def _sweep(folder: Path) -> None:
    """Remove temporary files of interrupted writes from a run folder.

    Raises:
        OutputError: a folder in the run folder is a symbolic link.
    """
    answers = [folder / "before", folder / "teacher"]
    inner = [*answers, *(path / RESPONSES for path in (folder, *answers)), folder / "checkpoints"]
    if (link := folders.linked_folder(folder)) is not None:
        raise OutputError(f"{link}: is a symbolic link, and a run writes only inside its folder; replace it by a folder")
    for path in (folder, *inner):
        folders.remove_leftovers(path)
