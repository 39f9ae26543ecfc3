"""The folder of a run: whose it is, and that one job at a time works in it."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from redistill import __version__
from redistill.config.decode import shown
from redistill.config.run import Run, encode_run, up_to_date, without_output_folders
from redistill.config.schema import SCHEMA, schema_of_run, writer_of
from redistill.errors import CheckpointError, ConfigError, OutputError, RedistillError
from redistill.evaluation.folder import RESPONSES
from redistill.processes import watch as ranks
from redistill.storage import files
from redistill.storage.lock import locked

RUN_FILE = "run.json"
WORTH_KEEPING = (RUN_FILE, "rejected.jsonl")
"""Files for whose sake the folder of a run that failed is left standing."""


def claim(config: Run) -> bool:
    """See that the folder, if it stands, is this run's own; returns whether the student in it is trained already.

    Raises:
        ConfigError: it holds another run, an unfinished run of an older schema, or files of a run without its run.json.
        CheckpointError: its run.json holds no run.
        OutputError: it cannot be read.
    """
    folder = config.folder
    held = _held(folder)
    if held is None:
        return False
    is_trained = held.get("status") in {"trained", "finished"} and has_model(folder)
    check_run_schema(folder, held, resumes=not is_trained)
    mine, theirs = (_flat(without_output_folders(tree)) for tree in (encode_run(config), up_to_date(held.get("config", {}))))
    different = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
    if different:
        name = different[0]
        raise ConfigError(
            f"{folder}: holds another run ({name} is {theirs.get(name)!r} there and {mine.get(name)!r} here"
            + (f", and {len(different) - 1} more fields differ" if len(different) > 1 else "")
            + "); choose another `out`, or remove the folder"
        )
    return is_trained


def check_run_schema(folder: Path, held: Mapping[str, Any], *, resumes: bool) -> None:
    """Refuse a run folder of a newer schema, and to resume an unfinished run of an older one.

    Args:
        folder: Of the run.
        held: What its run.json holds.
        resumes: Whether training would continue there; a trained student of an older schema can be evaluated and reported.

    Raises:
        ConfigError: the folder is refused.
    """
    number = schema_of_run(held, str(folder / RUN_FILE))
    if resumes and number < SCHEMA:
        names = {"redistill": writer_of(held), "commit": held.get("commit")}
        writer = ", ".join(f"{name} {shown(value)}" for name, value in names.items() if isinstance(value, str))
        raise ConfigError(
            f"{folder}: holds an unfinished run of schema {number}, and redistill {__version__} resumes schema {SCHEMA} only; "
            f"finish it with the version that wrote it ({writer or 'not recorded'}), or choose another `out`"
        )


def _held(folder: Path) -> dict[str, Any] | None:
    """What run.json in `folder` holds; None where no run stands there."""
    try:
        if (folder / RUN_FILE).exists():
            held = files.read_json(folder / RUN_FILE)
            if not isinstance(held, dict):
                raise CheckpointError(f"{folder / RUN_FILE}: holds no run; choose another `out`, or remove the folder")
            return held
        leftovers = [name for name in ("checkpoints", "model") if (folder / name).exists()]
    except OSError as error:
        raise OutputError(f"{folder}: cannot be read ({error.strerror}); choose another output folder") from error
    if leftovers:
        raise ConfigError(
            f"{folder}: holds {' and '.join(leftovers)} but no {RUN_FILE}, so it is not this run's; "
            "choose another `out`, or remove the folder"
        )
    return None


def has_model(folder: Path) -> bool:
    """Whether the trained student of a run folder stands there, whole or as adapters."""
    return any((folder / "model" / name).exists() for name in ("config.json", "adapter_config.json"))


@contextmanager
def sole_use(folder: Path, accelerator: Accelerator, *worth_keeping: str) -> Iterator[None]:
    """An output folder, made, tried for writing, swept, and locked by the main process for all of this job.

    It is taken away again if all fails before one of the files `worth_keeping` is in it.

    Raises:
        BusyError: another job has it.
        OutputError: it cannot be written to, or a folder in it is a link to somewhere else.
    """
    existed = folder.exists()
    with ranks.watched(), ExitStack() as held:  # also what lies between the parts of a job that are watched themselves
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
    """Remove what killed processes left half-written, wherever a run writes; refuse links that lead its files elsewhere."""
    answers = [folder / "before", folder / "teacher"]
    inner = [*answers, *(place / RESPONSES for place in (folder, *answers)), folder / "checkpoints"]
    if links := [place for place in inner if place.is_symlink()]:
        raise OutputError(f"{links[0]}: is a link, and a run writes inside its folder alone; put a folder in its place")
    for place in (folder, *inner):
        files.remove_leftovers(place)


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    if isinstance(tree, dict):
        return {key: value for name, item in tree.items() for key, value in _flat(item, f"{path}.{name}".strip(".")).items()}
    return {path: tree}
