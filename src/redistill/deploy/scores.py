"""Export of the scores of a run or a sweep, without weights and texts.

The folder is small, and it contains no texts of test sets, so it can be published.  `redistill compare` builds the same tables
from it as from the original folder.
"""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from redistill.deploy.export import Exported
from redistill.errors import CheckpointError, OutputError
from redistill.records import Json
from redistill.reports.folders import at, log_lines, measures, read_object
from redistill.reports.judgements import FILE as JUDGEMENTS
from redistill.reports.lineup import SWEEP_FILE
from redistill.reports.responses import QUESTION_HASH, question_hash, responses_files
from redistill.runs.folder import RUN_FILE
from redistill.storage import files, folders
from redistill.storage.paths import check_path

_EVALUATIONS = (".", "teacher", "before")
_COPIED = ("scores.json", "settings.json", JUDGEMENTS)
_LOG = "metrics.jsonl"
_KINDS = ("validation", "event")  # lines of the log that are exported


def export_scores(folder: Path, out: Path | None = None) -> Exported:
    """Write the scores of a run, or of all finished runs of a sweep.

    For each run, the new folder contains run.json, scores.json, and the validations and events of metrics.jsonl.  For each
    prompt, it contains the id, the scores and a hash of the text.

    Args:
        folder: A run folder or a sweep folder.
        out: The folder to write, which must be new or empty.  If None, the folder is `export/scores` in `folder`.  An earlier
            export in this folder is then replaced.

    Returns:
        The folder, its files, and a command line that uses it.

    Raises:
        CheckpointError: `folder` is neither a run folder nor a sweep folder, no run is finished, or a file is damaged.
        OutputError: the folder is not empty, or it cannot be written.
    """
    runs = _runs(folder)
    target = folder / "export" / "scores" if out is None else out
    check_path(target)
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out}: exists; must be a new or an empty folder; choose another --out, or remove this one")
    with folders.new_folder(target.absolute()) as made:
        if (folder / SWEEP_FILE).is_file():
            folders.copy(folder / SWEEP_FILE, made / SWEEP_FILE)
        for name in runs:
            _write_run(folder / name, made / name)
    written = tuple(sorted(path.name for path in target.iterdir()))
    return Exported(folder=target, files=written, notes=(), command=f"redistill compare {shlex.quote(str(target))}")


def _runs(folder: Path) -> list[str]:
    """Return the paths of the finished runs, relative to `folder`; "." if `folder` is a run."""
    if (folder / RUN_FILE).is_file():
        names = ["."]
    elif (folder / SWEEP_FILE).is_file():
        listed = read_object(folder / SWEEP_FILE).get("runs")
        found = [at(item, "folder") for item in listed] if isinstance(listed, list) else []
        names = list(dict.fromkeys(name for name in found if isinstance(name, str)))
    else:
        raise CheckpointError(f"{folder}: must be a folder of a run or of a sweep; check the path")
    finished = [name for name in names if (files.inside(folder, name) / "scores.json").is_file()]
    if not finished:
        raise CheckpointError(f"{folder}: no run is finished; rerun the command of the run first")
    return finished


def _write_run(run: Path, made: Path) -> None:
    folders.copy(run / RUN_FILE, made / RUN_FILE)
    files.append_lines(files.make_folder(made) / _LOG, [line for line in log_lines(run / _LOG) if line.get("kind") in _KINDS])
    for name in _EVALUATIONS:
        for copied in _COPIED:
            if (run / name / copied).is_file():
                folders.copy(run / name / copied, made / name / copied)
        for file, lines in _responses(run / name):
            files.append_lines(files.make_folder(made / name / "responses") / file, lines)


def _responses(evaluation: Path) -> Iterator[tuple[str, list[Mapping[str, Json]]]]:
    """Yield the name of each responses file, and its lines without texts."""
    if not (evaluation / "scores.json").is_file():
        return
    scores = read_object(evaluation / "scores.json")
    for dataset, _, _, path in responses_files(evaluation, scores):
        names = ["id", "category", *(measure.name for measure in measures(at(scores, "datasets", dataset)))]
        lines: list[Mapping[str, Json]] = [
            {**{name: line[name] for name in names if name in line}, QUESTION_HASH: question_hash(line)}
            for line in log_lines(path)
        ]
        yield path.name, lines
