"""Extension of a run to a larger `training.updates`.

The run is resumed from its last checkpoint.  The learning rate, and everything else that depends on the number of updates,
uses the new number.  The results of the shorter run are kept in `<run folder>/step-N`, where N is its number of updates.
"""

from pathlib import Path

from redistill.errors import CheckpointError, ConfigError
from redistill.evaluation.folder import RESPONSES, SETTINGS
from redistill.evaluation.positions import POSITIONS
from redistill.evaluation.scores import SCORES
from redistill.records import Json
from redistill.reports.folders import at, mapping
from redistill.runs.folder import FINISHED, RUN_FILE, TRAINED, has_model
from redistill.runs.opened import OpenRun
from redistill.storage import files, folders
from redistill.training import checkpoint
from redistill.training.guards import Event
from redistill.training.lengths import check_length, in_updates
from redistill.training.optimiser import OptimiserConfig, set_learning_rates
from redistill.training.parts import Parts
from redistill.training.saving import planned_updates

RESULTS = ("report.html", SCORES, RESPONSES, SETTINGS, POSITIONS)
"""Files with results of a run, without its model.  They are removed from the run folder when the run is extended."""


def extend(run: OpenRun) -> list[Json]:
    """Prepare the folder of a run whose `training.updates` was raised.

    The results of the shorter run are kept.  The model, the scores, the answers and the report are moved to `step-N` in the
    run folder.  run.json and metrics.jsonl are copied, so that `step-N` is a run folder as well.  If the run was not
    extended, nothing is changed.  A call that was interrupted at any moment can be repeated.

    Args:
        run: The run.  The caller has checked that the checkpoints belong to this run.  Only the main process calls this
            function, before it writes run.json.

    Returns:
        An entry for each extension of the run: `updates`, the length of the run before the extension, and `step`, the
        number of updates that were done at that time.

    Raises:
        ConfigError: the new length is not larger than that of run.json, or early stopping ended the shorter run.
        CheckpointError: the shorter run has no checkpoint.
        OutputError: the results cannot be moved.
    """
    folder, new = run.config.folder, run.schedule.updates
    held = mapping(files.read_json(folder / RUN_FILE)) if (folder / RUN_FILE).exists() else {}
    earlier, length = extensions(held), at(held, "config", "training", "updates")
    if not held or length == run.config.training.updates:
        return earlier
    old = _in_updates(length, run)
    if new <= old:
        raise ConfigError(
            f"{folder}: training.updates = {run.config.training.updates}: is {new} updates, but the run in this folder has "
            f"{old}, and the number can only be raised; choose another `out`, or remove the folder"
        )
    found = checkpoint.load(run.output.checkpoints)
    if found is None:
        if held.get("status") in (TRAINED, FINISHED):
            raise CheckpointError(
                f"{folder}: has no checkpoint from which {new} updates could be reached; restore {folder / 'checkpoints'}, or "
                "choose another `out`"
            )
        return earlier  # nothing has been trained
    if at(found.state, "training", "stopped") is True:
        raise ConfigError(
            f"{folder}: early stopping ended the run at step {found.step} (training.patience = "
            f"{run.config.training.patience}), so it cannot be extended; choose another `out`"
        )
    if has_model(folder):
        done = at(held, "cost", "updates")  # the newest checkpoint may be damaged
        kept = folder / f"step-{done if type(done) is int and 0 < done <= old else found.step}"
        _keep(folder, kept)
        run.output.progress.note(f"the results of the run of {old} updates are kept in {kept}")
    for name in RESULTS:
        if (folder / name).exists():
            folders.remove_folder(folder / name)
    return [*earlier, {"updates": old, "step": found.step}]


def extensions(held: Json) -> list[Json]:
    """Return the extensions of a run; `held` is the content of run.json."""
    found = mapping(held).get("extended")
    return list(found) if isinstance(found, list) else []


def report_extension(parts: Parts, found: checkpoint.Checkpoint, optimiser: OptimiserConfig) -> None:
    """Log the learning rates before and after an extension as an event.

    Nothing is logged if the checkpoint was saved by a run of the same length.

    Args:
        parts: The objects of the training loop.
        found: The checkpoint from which the run resumes.
        optimiser: The learning rate schedule.
    """
    old, new = planned_updates(found), parts.schedule.updates
    if old is None or old == new or not found.step:
        return
    before = set_learning_rates(parts.learner.optimizer, optimiser, found.step - 1, old)
    after = set_learning_rates(parts.learner.optimizer, optimiser, found.step, new)
    seam = ", ".join(f"{name} {before[name]:.3g} before and {after[name]:.3g} after".replace("_", " ") for name in after)
    text = f"step {found.step}: extended from {old} to {new} updates; {seam}"
    facts = {"updates_before": old, "updates_after": new, "before": before, "after": after}
    parts.guards.report_event(Event(found.step, "extended", text, facts))


def _in_updates(length: Json, run: OpenRun) -> int:
    """Convert the length of a run, as run.json stores it, to a number of updates."""
    if not isinstance(length, int | str) or isinstance(length, bool):
        raise CheckpointError(
            f"{run.config.folder / RUN_FILE}: has no config.training.updates; restore the file that the run wrote"
        )
    check_length("training.updates", length, 1)
    return in_updates(length, len(run.data.train), run.config.training.batch_size)


def _keep(folder: Path, kept: Path) -> None:
    """Copy the results in a run folder to the folder `kept`, and move the model.

    If a call is interrupted before the model is moved, the copy may be incomplete.
    """
    with folders.new_folder(kept) as copy:
        for name in (RUN_FILE, "metrics.jsonl", *RESULTS):
            if (folder / name).exists():
                folders.copy(folder / name, copy / name)
    try:
        files.disk.rename(folder / "model", kept / "model")
        for changed in (kept, folder):
            files.sync(changed)
    except OSError as error:
        raise files.write_failed(kept / "model", error) from error
