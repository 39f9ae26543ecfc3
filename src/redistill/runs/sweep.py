"""Execution of a sweep: every row of a sweep recipe with every seed, and the comparison of them.

Everything is decoded before anything runs.  Each run is a process of its own, so that its memory is freed and a crash ends
that run alone; the same command resumes where it was stopped.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import Any

import torch
import yaml

from redistill.config.run import Run, encode_run, up_to_date
from redistill.config.schema import SCHEMA
from redistill.errors import ConfigError, TrainingError
from redistill.reports.compare import build_comparison
from redistill.reports.folders import mapping, number
from redistill.reports.lineup import SWEEP_FILE
from redistill.reports.statistics import mean
from redistill.reports.terminal import print_comparison
from redistill.runs.demo import toy_world
from redistill.runs.folder import RUN_FILE, check_run_schema
from redistill.runs.jobs import Job, JobProgress, last_line, run_jobs
from redistill.runs.sweep_recipe import Entry, Sweep, expand, read_sweep, settings_of
from redistill.storage import files
from redistill.storage.lock import locked
from redistill.storage.redaction import plain

RECIPE_FILE, LOG_FILE = "recipe.yaml", "log.txt"
FORMATS = ("html", "md", "tex", "csv")
REDISTILL = (sys.executable, "-m", "redistill")
TRAINED, FINISHED = "trained", "finished"
RETRYABLE = {files.TRY_AGAIN, *(code for number in (SIGINT, SIGTERM) for code in (128 + number, -number))}
"""Exit codes of runs that failed or were interrupted without a fault of their own; the same command resumes them."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A sweep with all its runs decoded.

    Args:
        folder: Holds sweep.json, a folder for each run, `stages/`, and the comparisons.
        entries: Row by row.
        only: Labels whose runs are wanted now.
        allow_code: Modules whose code the runs may use.
    """

    sweep: Sweep
    folder: Path
    entries: tuple[Entry, ...]
    only: tuple[str, ...]
    allow_code: tuple[str, ...]

    @property
    def wanted(self) -> list[Entry]:
        """An entry for each run that is wanted now."""
        return list({entry.run.folder: entry for entry in reversed(self.entries) if entry.label in self.only}.values())[::-1]

    def statuses(self) -> dict[Path, str]:
        """Run folder -> what stands there: "finished", "trained", "running" (begun), or "waiting".

        Raises:
            ConfigError: a folder holds another run or another sweep.
        """
        path = self.folder / SWEEP_FILE
        held = mapping(files.read_json(path)).get("name") if path.is_file() else self.sweep.name
        if held != self.sweep.name:
            raise ConfigError(f"{self.folder}: holds the sweep '{held}', not '{self.sweep.name}'; choose another --out")
        every = [config for entry in self.entries for config in (*entry.stages, entry.run)]
        return {config.folder: _status(config) for config in every}

    def describe(self) -> list[str]:
        """A line for each run: its folder, whether it is done, and the rows that it stands for."""
        statuses, rows = self.statuses(), dict[Path, list[str]]()
        for entry in self.entries:
            rows.setdefault(entry.run.folder, []).append(f"{entry.label} (seed {entry.seed})")
        return [f"{folder}  {statuses[folder]}  {', '.join(labels)}" for folder, labels in rows.items()]


def plan_sweep(
    recipe: Path,
    overrides: Sequence[str] = (),
    *,
    out: Path | None = None,
    only: Sequence[str] = (),
    allow_code: Sequence[str] = (),
) -> Plan:
    """Read and expand a sweep recipe; nothing is written or run.

    Args:
        overrides: Settings to change in every run, as `section.field=value`; they win over the rows.
        out: Where to run it; None takes runs/NAME.
        only: Labels whose runs are wanted now; none wants all.
        allow_code: Modules whose code may run where the recipe names a part of them, as `my_module:MyDivergence`.

    Raises:
        ConfigError: a mistake anywhere in the recipe or in one of its runs, named with its row.
    """
    sweep = read_sweep(recipe)
    for label in only:
        if label not in sweep.rows:
            raise ConfigError(f"--only {label}: no such row; the rows are {', '.join(sweep.rows)}")
    folder = out or Path("runs") / sweep.name
    entries = expand(sweep, recipe, folder, overrides, allow_code)
    only = tuple(only) or tuple(sweep.rows)
    return Plan(sweep=sweep, folder=folder, entries=entries, only=only, allow_code=tuple(allow_code))


def run_sweep(plan: Plan, *, jobs: int | None = None) -> list[Path]:
    """Run what of a sweep is not finished, several runs at once, and compare all that is.

    Args:
        jobs: Runs at once; None takes one for each processor core, and one alone where there is an accelerator.

    Returns:
        The comparisons: an HTML page, Markdown, LaTeX and CSV for each table.

    Raises:
        ConfigError: the folder holds another sweep or other runs, or another sweep is at work in it.
        TrainingError: runs failed; the others are finished and compared nevertheless.  Its exit code is 75 where all
            failures are retryable.
        Interrupted: the runs were stopped; the same plan resumes them.
    """
    statuses = plan.statuses()
    with locked(plan.folder) as lock:  # the runs inherit it, so that those of a killed sweep are not disturbed
        todo = _jobs(plan, statuses)
        if todo and plan.sweep.world == "toy":
            toy_world()
        failed, codes = _run(plan, todo, statuses, jobs or _room(), lock)
        pages = _compare(plan, statuses)
    if failed:
        which = f"{len(failed)} of {len(todo)} runs failed: {'; '.join(failed)}"
        error = TrainingError(f"{plan.folder}: {which}; fix the cause and repeat the command")
        if codes - {0} <= RETRYABLE:
            error.exit_code = files.TRY_AGAIN
        raise error
    return pages


# --- what is there already --------------------------------------------------------------------------------------------


def _status(config: Run) -> str:
    """What stands in the folder of a run.

    Raises:
        ConfigError: another run, or an unfinished one of an older schema.
    """
    path = config.folder / RUN_FILE
    if not path.is_file():
        return "waiting"
    held = mapping(files.read_json(path))
    check_run_schema(config.folder, held, resumes=held.get("status") not in {TRAINED, FINISHED})
    different = _first_difference(settings_of(encode_run(config)), settings_of(up_to_date(mapping(held.get("config")))))
    if different:
        raise ConfigError(f"{config.folder}: holds another run ({different}); choose another --out, or remove the folder")
    return str(held.get("status"))


def _first_difference(mine: Any, theirs: Any, path: str = "") -> str:
    """Where two trees differ first, in words; "" where they are equal."""
    if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
        names = [*mine, *(name for name in theirs if name not in mine)]
        found = (_first_difference(mine.get(name), theirs.get(name), f"{path}.{name}".strip(".")) for name in names)
        return next((difference for difference in found if difference), "")
    return "" if mine == theirs else f"{path} is {theirs!r} there and {mine!r} here"


# --- running ------------------------------------------------------------------------------------------------------------


def _jobs(plan: Plan, statuses: Mapping[Path, str]) -> list[Job]:
    """What is to do, in order; a stage once, before the first run that needs it."""
    found: dict[Path, Job] = {}
    for entry in plan.wanted:
        if statuses[entry.run.folder] == FINISHED:
            continue
        needs: list[str] = []
        for stage in entry.stages:
            if statuses[stage.folder] not in {TRAINED, FINISHED}:
                found.setdefault(stage.folder, _job(stage, "train", needs, plan.allow_code))
                needs = [*needs, stage.folder.name]
        found[entry.run.folder] = _job(entry.run, "run", needs, plan.allow_code)
    return list(found.values())


def _job(config: Run, command: str, needs: Sequence[str], allow_code: Sequence[str]) -> Job:
    folder = config.folder
    allowed = [f"--allow-code={module}" for module in allow_code]
    return Job(
        name=folder.name,
        command=(*REDISTILL, command, str(folder / RECIPE_FILE), "--out", str(folder), *allowed),
        log=folder / LOG_FILE,
        needs=tuple(needs),
    )


def _run(plan: Plan, todo: Sequence[Job], statuses: dict[Path, str], limit: int, lock: int) -> tuple[list[str], set[int]]:
    """Run the jobs and keep sweep.json true; returns a phrase for each that failed, and the exit codes that there were."""
    every = {config.folder: config for entry in plan.wanted for config in (*entry.stages, entry.run)}
    for job in todo:
        recipe = yaml.safe_dump({"schema": SCHEMA, **encode_run(every[job.log.parent])}, sort_keys=False)
        files.write_text(job.log.parent / RECIPE_FILE, recipe)
    failed: list[str] = []

    def begun(job: Job) -> None:
        statuses[job.log.parent] = "running"
        _write_sweep(plan, statuses)
        progress.started(job.name)

    def ended(job: Job, code: int, seconds: float) -> None:
        folder = job.log.parent
        statuses[folder] = "failed" if code else FINISHED
        _write_sweep(plan, statuses)
        why = f"exit code {code}, {plain(last_line(job.log))} (log: {job.log})"
        if code:
            failed.append(f"{job.name}: {why}")
        progress.ended(job.name, seconds, f"failed: {why}" if code else _score(folder))

    _write_sweep(plan, statuses)
    with JobProgress(len(todo)) as progress:
        codes = run_jobs(todo, limit, environment=_environment(limit), on_start=begun, on_end=ended, keep_open=(lock,))
    failed += [f"{job.name}: not begun, since what it needs failed" for job in todo if job.name not in codes]
    return failed, set(codes.values())


def _write_sweep(plan: Plan, statuses: Mapping[Path, str]) -> None:
    """sweep.json: what the sweep is and how far; `redistill compare` reads it."""
    sweep = plan.sweep
    runs = [
        {
            "label": entry.label,
            "seed": entry.seed,
            "folder": entry.run.folder.name,
            "status": statuses[entry.run.folder],
        }
        for entry in plan.entries
    ]
    held = {
        "schema": 1,
        "name": sweep.name,
        "baseline": sweep.baseline or next(iter(sweep.rows)),
        "published": list(sweep.published),
        "groups": {name: list(group.rows) for name, group in sweep.groups.items()},
        "runs": runs,
    }
    files.write_json(plan.folder / SWEEP_FILE, held)


def _room() -> int:
    """How many runs at once: an accelerator is not shared, cores are taken one each."""
    return 1 if torch.accelerator.is_available() else _cores()


def _cores() -> int:
    """Cores that this process may use, which in a container are fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _environment(limit: int) -> dict[str, str]:
    """Of the runs: side by side they share the cores out, else their threads would stand in each other's way."""
    threads = {"OMP_NUM_THREADS": str(max(1, _cores() // limit))} if limit > 1 else {}
    return {**threads, **os.environ}


def _score(folder: Path) -> str:
    """The mean ROUGE-L over data sets and evaluation seeds, in words; "" for a run without scores."""
    path = folder / "scores.json"
    datasets = mapping(mapping(files.read_json(path)).get("datasets")) if path.is_file() else {}
    means = []
    for told in datasets.values():
        scores = [number(mapping(seed).get("rouge_l")) for seed in mapping(mapping(told).get("seeds")).values()]
        means.append(mean(score for score in scores if score is not None))
    total = mean(score for score in means if score is not None)
    return "" if total is None else f"ROUGE-L {total:.2f}"


# --- comparing ----------------------------------------------------------------------------------------------------------


def _compare(plan: Plan, statuses: Mapping[Path, str]) -> list[Path]:
    """Write and print a comparison for each table, of the rows that have a finished run."""
    finished = {entry.label for entry in plan.entries if statuses[entry.run.folder] == FINISHED}
    pages = []
    for name, group in plan.sweep.tables.items():
        labels = [label for label in group.rows if label in finished]
        if not labels:
            continue
        outputs = [plan.folder / f"{name}.{suffix}" for suffix in FORMATS]
        comparison = build_comparison(
            [plan.folder],
            outputs,
            baseline=group.baseline if group.baseline in labels else None,
            published=group.published,
            labels=labels,
        )
        print_comparison(comparison)
        pages += outputs
    return pages
