"""The runs of a comparison, with labels, training seeds and the baseline."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from redistill.config.shown import shown
from redistill.errors import CheckpointError, ConfigError, DataError, OutputError
from redistill.reports.folders import RunFolder, at, mapping, read_object, read_run
from redistill.storage import files

SWEEP_FILE = "sweep.json"
NOT_THE_METHOD = {"seed", "out", "name"}  # settings that may differ between runs of one label


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One finished run of a comparison.

    Args:
        label: Name of the run's row in the tables; runs with the same label differ in their training seed.
        seed: Training seed.
        run: Content of the run folder.
        sweep: Name of the sweep that contains the run; "" if the run folder was given directly.
    """

    label: str
    seed: int
    run: RunFolder
    sweep: str = ""


@dataclass(frozen=True, kw_only=True)
class Lineup:
    """The runs of a comparison, in the order of the table rows.

    Args:
        name: Title of the comparison.
        entries: The finished runs.
        baseline: Label of the runs that the others are compared with.
        left_out: One phrase for each unfinished run of the sweeps: its label, its seed and its folder.
    """

    name: str
    entries: Sequence[Entry]
    baseline: str
    left_out: Sequence[str]

    @property
    def labels(self) -> list[str]:
        """The distinct labels of the runs, in the order of the table rows."""
        return list(dict.fromkeys(entry.label for entry in self.entries))

    def of(self, label: str) -> list[Entry]:
        """Return the entries whose label is `label`."""
        return [entry for entry in self.entries if entry.label == label]


def read_lineup(folders: Sequence[Path], baseline: str | None = None, labels: Sequence[str] = ()) -> Lineup:
    """Read the runs in `folders`, each of which is a run folder or a sweep folder.

    A run of a sweep has the label of its row in the sweep.  Run folders that are given directly are grouped by method and
    settings; seed, output folder and name are ignored.  If a method has a single group, the label of its runs is the method.
    Otherwise, the label is the common prefix of the run names in the group.  A suffix with the training seed, such as
    "-seed10", is removed from the names first.  If two groups would have the same label, folder names are used, or else paths.

    Args:
        folders: Run folders or sweep folders.
        baseline: A label or a run folder.  If None, it is the baseline that a sweep sets, or else the first run.
        labels: Labels of the runs to include, in this order; if empty, all runs are included.

    Raises:
        CheckpointError: a folder is neither a run nor a sweep; a folder is damaged; there is no finished run; two runs have the
            same label and the same training seed.
        ConfigError: an entry of `labels` is unknown; `baseline` is neither a label nor a run folder.
    """
    sweeps = [_read_sweep(folder) for folder in folders if (folder / SWEEP_FILE).is_file()]
    plain = [_read_plain(folder) for folder in folders if not (folder / SWEEP_FILE).is_file()]
    swept = [entry for sweep in sweeps for entry in sweep.entries]
    entries = _with_unique_labels([*swept, *_label_plain(plain)])
    if baseline is not None and baseline not in {entry.label for entry in entries} and Path(baseline).is_dir():
        added = _read_plain(Path(baseline))
        entries = _with_unique_labels([*swept, *_label_plain([*plain, added])])
        baseline = next(entry.label for entry in entries if entry.run.path.resolve() == added.path.resolve())
    if not entries:
        raise CheckpointError(f"{', '.join(map(str, folders))}: no finished run to compare; finish at least one run first")
    held = list(dict.fromkeys(entry.label for entry in entries))
    for label in labels:
        if label not in held:
            raise ConfigError(f"--rows {label}: no finished run has this label; must be one of {', '.join(held)}")
    labels = labels or held
    entries = [entry for label in labels for entry in entries if entry.label == label]
    if baseline is not None and baseline not in labels:
        raise ConfigError(f"--baseline {baseline}: must be one of {', '.join(labels)}, or the folder of a finished run")
    proposed = [sweep.baseline for sweep in sweeps if sweep.baseline in labels]
    return Lineup(
        name=", ".join(sweep.name for sweep in sweeps) or "Comparison",
        entries=entries,
        baseline=baseline or [*proposed, *labels][0],
        left_out=[left for sweep in sweeps for left in sweep.left_out],
    )


def _read_sweep(folder: Path) -> Lineup:
    """Read the finished runs of a sweep, and list the unfinished ones in `left_out`.

    The attribute `baseline` of the result is "" if the sweep sets no baseline.
    """
    path = folder / SWEEP_FILE
    try:
        held = read_object(path)
        name = str(held.get("name") or folder.resolve().name)
        entries, unfinished = [], []
        runs: dict[Path, RunFolder | None] = {}  # rows with equal settings share one run folder
        items = held.get("runs") or []
        if not isinstance(items, list):
            raise DataError(f"{path}: `runs` is {shown(items)}; must be a list")
        for item in items:
            label, seed, relative = (at(item, key) for key in ("label", "seed", "folder"))
            if not isinstance(label, str) or not isinstance(seed, int) or not isinstance(relative, str):
                raise DataError(f"{path}: `runs` has the entry {shown(item)}; each entry must have label, seed and folder")
            path_of_run = files.inside(folder, relative)
            if path_of_run not in runs:
                runs[path_of_run] = _finished(path_of_run)
            run = runs[path_of_run]
            if run is None:
                unfinished.append(f"{label}, seed {seed} ({relative})")
            else:
                entries.append(Entry(label=label, seed=seed, run=run, sweep=name))
    except (DataError, OutputError, OSError) as error:
        raise CheckpointError(f"{error}; fix the file, or pass the run folders instead of the sweep folder") from error
    return Lineup(name=name, entries=entries, baseline=str(held.get("baseline") or ""), left_out=unfinished)


def _finished(folder: Path) -> RunFolder | None:
    if not (folder / "run.json").is_file():
        return None
    run = read_run(folder, scores_only=True)
    return run if run.description.get("status") == "finished" and run.student is not None else None


def _read_plain(folder: Path) -> RunFolder:
    run = read_run(folder, scores_only=True)
    if run.student is None:
        raise CheckpointError(f"{run.path}: scores.json is missing, so the run is not finished; rerun its command to resume it")
    return run


def _label_plain(runs: Sequence[RunFolder]) -> list[Entry]:
    """Return labelled entries of the runs that were given directly, without a sweep."""
    kinds = [(str(run.description.get("method") or run.name), _settings(run)) for run in runs]
    recorded = [at(run.description, "config", "seed") for run in runs]
    seeds = [seed if isinstance(seed, int) else 0 for seed in recorded]
    by_name, by_folder = (
        _labels(kinds, [re.sub(rf"(?<=.)[-_.]?seed{seed}$", "", name) for name, seed in zip(names, seeds, strict=True)])
        for names in ([run.name for run in runs], [run.path.resolve().name for run in runs])
    )
    by_path = _labels(kinds, [str(run.path) for run in runs])
    labels = next((found for found in (by_name, by_folder) if len(set(zip(found, kinds))) == len(set(found))), by_path)
    return [Entry(label=label, seed=seed, run=run) for label, seed, run in zip(labels, seeds, runs, strict=True)]


def _labels(kinds: Sequence[tuple[str, str]], names: Sequence[str]) -> list[str]:
    """Return the label of each run.

    `kinds` has the method and the settings of each run.  If all runs of a method have the same settings, their label is the
    method.  Otherwise, it is the common prefix of the names of the runs with the same settings.  For example, the runs
    mgsr-long-10 and mgsr-long-20 have the label mgsr-long.
    """
    num_variants = Counter(method for method, _ in set(kinds))
    labels = []
    for kind in kinds:
        same = [name for name, other in zip(names, kinds, strict=True) if other == kind]
        letters = itertools.takewhile(lambda found: len(set(found)) == 1, zip(*same, strict=False))
        common = "".join(found[0] for found in letters).rstrip("-_. ") or same[0]
        labels.append(kind[0] if num_variants[kind[0]] == 1 else common)
    return labels


def _settings(run: RunFolder) -> str:
    """Return the recipe of a run as JSON, without seed, output folder and name."""
    config = mapping(at(run.description, "config"))
    return json.dumps({name: value for name, value in config.items() if name not in NOT_THE_METHOD}, sort_keys=True)


def _with_unique_labels(found: Sequence[Entry]) -> list[Entry]:
    """Return the entries without duplicate runs; make labels unique across sweeps.

    If several sweeps use the same label, the name of the sweep is appended to the label.

    Raises:
        CheckpointError: two runs have the same label and training seed, even after sweep names were appended.
    """
    swept = {entry.run.path.resolve() for entry in found if entry.sweep}
    alone = {entry.run.path.resolve(): entry for entry in found if not entry.sweep}
    entries = [entry for entry in found if entry.sweep] + [entry for path, entry in alone.items() if path not in swept]
    num_sweeps = Counter(label for label, _ in {(entry.label, entry.sweep) for entry in entries})
    named = [
        replace(entry, label=f"{entry.label} ({entry.sweep})") if entry.sweep and num_sweeps[entry.label] > 1 else entry
        for entry in entries
    ]
    held: dict[tuple[str, int], Entry] = {}
    for entry in named:
        other = held.setdefault((entry.label, entry.seed), entry)
        if other is not entry:
            raise CheckpointError(
                f"{entry.run.path}: has the same label '{entry.label}' and training seed {entry.seed} as {other.run.path}; "
                "must be unique; pass only one of the two, or give the runs different names"
            )
    return named
