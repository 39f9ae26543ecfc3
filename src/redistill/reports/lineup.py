"""Which runs stand in a comparison, under which label and training seed, and which one the others are held against."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from redistill.config import decode as decoding
from redistill.errors import CheckpointError, ConfigError, DataError, OutputError
from redistill.reports.folders import RunFolder, mapping, read_object, read_run
from redistill.storage import files

SWEEP_FILE = "sweep.json"
_NOT_THE_METHOD = {"seed", "out", "name"}  # settings that may differ between the training seeds of one label


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One finished run in a comparison.

    Args:
        label: The row that it belongs to; runs of one label differ in their training seed.
        sweep: Name of the sweep that it came with; "" where its folder was given.
    """

    label: str
    seed: int
    run: RunFolder
    sweep: str = ""


@dataclass(frozen=True, kw_only=True)
class Lineup:
    """The runs of a comparison in the order of its rows.

    Args:
        name: What the comparison is called.
        baseline: Label that differences are to.
        left_out: Runs of a sweep that are not finished.
    """

    name: str
    entries: Sequence[Entry]
    baseline: str
    left_out: Sequence[str]

    @property
    def labels(self) -> list[str]:
        return list(dict.fromkeys(entry.label for entry in self.entries))

    def of(self, label: str) -> list[Entry]:
        return [entry for entry in self.entries if entry.label == label]


def read_lineup(folders: Sequence[Path], baseline: str | None = None, labels: Sequence[str] = ()) -> Lineup:
    """The runs in `folders`, each of which is a run folder or the folder of a sweep.

    A run's label is what its sweep calls it, else its method; where runs of one method differ in more than their training
    seed, it is what their names have in common.

    Args:
        baseline: A label, or the folder of a run; None takes the sweep's, else the first label.
        labels: Only these rows, in this order; none takes all.

    Raises:
        CheckpointError: a folder is neither, is damaged, or has nothing finished; or two runs have one label and seed.
        ConfigError: `baseline` is neither a label nor a run.
    """
    sweeps = [_read_sweep(folder) for folder in folders if (folder / SWEEP_FILE).is_file()]
    plain = [_read_plain(folder) for folder in folders if not (folder / SWEEP_FILE).is_file()]
    swept = [entry for sweep in sweeps for entry in sweep.entries]
    entries = _told_apart([*swept, *_label_plain(plain)])
    if baseline is not None and baseline not in {entry.label for entry in entries} and Path(baseline).is_dir():
        stranger = _read_plain(Path(baseline))
        entries = _told_apart([*swept, *_label_plain([*plain, stranger])])
        baseline = next(entry.label for entry in entries if entry.run.path.resolve() == stranger.path.resolve())
    if not entries:
        raise CheckpointError(f"{', '.join(map(str, folders))}: no finished run to compare; let one finish first")
    held = list(dict.fromkeys(entry.label for entry in entries))
    for label in labels:
        if label not in held:
            raise ConfigError(f"--rows {label}: no finished run is called so; the rows are {', '.join(held)}")
    labels = labels or held
    entries = [entry for label in labels for entry in entries if entry.label == label]
    if baseline is not None and baseline not in labels:
        raise ConfigError(f"--baseline {baseline}: must be one of {', '.join(labels)}, or the folder of a finished run")
    proposed = [sweep.baseline for sweep in sweeps if sweep.baseline in labels]
    return Lineup(
        name=", ".join(sweep.name for sweep in sweeps) or "Comparison",
        entries=entries,
        baseline=baseline or [*proposed, *labels][0],
        left_out=[left for sweep in sweeps for left in sweep.unfinished],
    )


@dataclass(frozen=True, kw_only=True)
class _Sweep:
    """What sweep.json tells, with the finished runs read."""

    name: str
    baseline: str
    entries: Sequence[Entry]
    unfinished: Sequence[str]


def _read_sweep(folder: Path) -> _Sweep:
    path = folder / SWEEP_FILE
    try:
        held = read_object(path)
        name = str(held.get("name") or folder.resolve().name)
        entries, unfinished = [], []
        runs: dict[Path, RunFolder | None] = {}  # rows whose settings are the same share one
        for told in held.get("runs") or []:
            about = mapping(told)
            label, seed, place = about.get("label"), about.get("seed"), about.get("folder")
            if not isinstance(label, str) or not isinstance(seed, int) or not isinstance(place, str):
                raise DataError(f"{path}: a run is {decoding.shown(told)}; it needs a label, a seed and a folder")
            path_of_run = files.inside(folder, place)
            if path_of_run not in runs:
                runs[path_of_run] = _finished(path_of_run)
            run = runs[path_of_run]
            if run is None:
                unfinished.append(f"{label}, seed {seed} ({place})")
            else:
                entries.append(Entry(label=label, seed=seed, run=run, sweep=name))
    except (DataError, OutputError, OSError) as error:
        raise CheckpointError(f"{error}; repair the file, or give the run folders themselves") from error
    return _Sweep(name=name, baseline=str(held.get("baseline") or ""), entries=entries, unfinished=unfinished)


def _finished(folder: Path) -> RunFolder | None:
    if not (folder / "run.json").is_file():
        return None
    run = read_run(folder, scores_only=True)
    return run if run.description.get("status") == "finished" and run.student is not None else None


def _read_plain(folder: Path) -> RunFolder:
    run = read_run(folder, scores_only=True)
    if run.student is None:
        raise CheckpointError(f"{run.path}: has no scores.json, so it is not finished; run its recipe again to the end")
    return run


def _label_plain(runs: Sequence[RunFolder]) -> list[Entry]:
    """Entries for runs that no sweep has named."""
    kinds: dict[str, dict[str, list[RunFolder]]] = {}
    for run in runs:
        settings = {
            name: value for name, value in mapping(run.description.get("config")).items() if name not in _NOT_THE_METHOD
        }
        method = str(run.description.get("method") or run.name)
        kinds.setdefault(method, {}).setdefault(json.dumps(settings, sort_keys=True), []).append(run)
    labels: dict[int, str] = {}
    for method, variants in kinds.items():
        for variant in variants.values():
            label = method if len(variants) == 1 else _common_name([run.name for run in variant])
            labels |= {id(run): label for run in variant}
    return [Entry(label=labels[id(run)], seed=_training_seed(run), run=run) for run in runs]


def _common_name(names: Sequence[str]) -> str:
    """What the names begin with, such as mgsr-long of mgsr-long-10 and mgsr-long-20."""
    same = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    return "".join(letters[0] for letters in same).rstrip("-_. ") or names[0]


def _training_seed(run: RunFolder) -> int:
    seed = mapping(run.description.get("config")).get("seed")
    return seed if isinstance(seed, int) else 0


def _told_apart(found: Sequence[Entry]) -> list[Entry]:
    """Labels that two sweeps share are followed by the sweep's name; a run that came with its sweep does not come twice.

    Raises:
        CheckpointError: two runs have one label and training seed all the same.
    """
    swept = {entry.run.path.resolve() for entry in found if entry.sweep}
    alone = {entry.run.path.resolve(): entry for entry in found if not entry.sweep}
    entries = [entry for entry in found if entry.sweep] + [entry for path, entry in alone.items() if path not in swept]
    sweeps: dict[str, set[str]] = {}
    for entry in entries:
        sweeps.setdefault(entry.label, set()).add(entry.sweep)
    named = [
        replace(entry, label=f"{entry.label} ({entry.sweep})") if entry.sweep and len(sweeps[entry.label]) > 1 else entry
        for entry in entries
    ]
    held: dict[tuple[str, int], Entry] = {}
    for entry in named:
        other = held.setdefault((entry.label, entry.seed), entry)
        if other is not entry:
            raise CheckpointError(
                f"{entry.run.path}: has the label '{entry.label}' and the training seed {entry.seed}, as {other.run.path} has; "
                "give one of the two, or give their runs different names"
            )
    return named
