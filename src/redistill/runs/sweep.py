"""Runs every row of a sweep recipe with every seed, and compares the runs.

A row is a label with settings, such as a method or an ablation.  The settings of all runs are validated before the first run
starts.  Each run is a separate process, so that a crash ends only that run.  An executor runs these processes on this machine
or on a cluster.  The same command resumes the sweep.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import NamedTuple

import yaml

from redistill.config.run import Run, encode_run
from redistill.config.schema import SCHEMA
from redistill.errors import ConfigError, TrainingError
from redistill.processes.children import python_module
from redistill.reports.compare import build_comparison
from redistill.reports.folders import Evaluation, mapping
from redistill.reports.lineup import SWEEP_FILE
from redistill.reports.pages import score
from redistill.reports.statistics import mean
from redistill.reports.terminal import print_comparison
from redistill.runs.demo import toy_world
from redistill.runs.executors import Executor, Outcome, make_executor
from redistill.runs.folder import FINISHED, RUN_FILE, TRAINED, check_run_schema, compared, differences, is_extension
from redistill.runs.jobs import Job, JobProgress, last_line
from redistill.runs.served import check_hosts
from redistill.runs.sweep_recipe import Entry, Sweep, expand, read_sweep, settings_of
from redistill.servers.address import allowed_hosts
from redistill.storage import files
from redistill.storage.lock import locked
from redistill.storage.redaction import plain

RECIPE_FILE, LOG_FILE = "recipe.yaml", "log.txt"
FORMATS = ("html", "md", "tex", "csv")
RETRYABLE = {files.TRY_AGAIN, *(code for number in (SIGINT, SIGTERM) for code in (128 + number, -number))}
"""Exit codes of runs that were interrupted or failed for a temporary reason; the same command resumes such runs."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A sweep and the validated settings of all its runs.

    Args:
        sweep: The sweep recipe.
        folder: Folder of the sweep.  It contains sweep.json, a folder for each run, the folder `stages` with the fine-tuned
            teachers and students, and the comparisons.
        entries: The validated run of each row and seed, in the order of the rows.  A row is a label with settings.
        only: Labels of the rows to run.
        allow_code: Modules that the runs may import for external components.
    """

    sweep: Sweep
    folder: Path
    entries: tuple[Entry, ...]
    only: tuple[str, ...]
    allow_code: tuple[str, ...]

    @property
    def selected(self) -> list[Entry]:
        """The entries of the rows in `only`, without duplicates of a run.

        Rows with equal settings have the same run; only the first of their entries is returned.
        """
        return list({entry.run.folder: entry for entry in reversed(self.entries) if entry.label in self.only}.values())[::-1]

    def statuses(self) -> dict[Path, str]:
        """Return the status of each run and of each fine-tuning before it, by folder.

        The status is read from the folders.  It is "waiting" (not started), "running" (started but not trained, or trained
        with fewer updates), "trained" (but not evaluated) or "finished" (trained and evaluated).

        Raises:
            ConfigError: a folder contains another run or another sweep.
            OutputError: a folder is a link to a folder outside the folder of the sweep.
        """
        runs = [config for entry in self.entries for config in (*entry.stages, entry.run)]
        for config in runs:
            files.inside(self.folder, str(config.folder.relative_to(self.folder)))
        path = self.folder / SWEEP_FILE
        held = mapping(files.read_json(path)).get("name") if path.is_file() else self.sweep.name
        if held != self.sweep.name:
            raise ConfigError(f"{self.folder}: contains the sweep '{held}', not '{self.sweep.name}'; choose another --out")
        return {config.folder: _status(config) for config in runs}

    def executor(self, on: str, jobs: int | None = None) -> Executor:
        """Create the executor of the runs.

        Args:
            on: The executor, as in `run_sweep`.
            jobs: Maximum number of parallel runs; if None, the executor chooses it.

        Raises:
            ConfigError: there is no such executor, a package that it needs is not installed, or it cannot provide the
                resources of a run.
        """
        return make_executor(on, folder=self.folder, limit=jobs, resources=self.sweep.resources)

    def describe(self) -> list[str]:
        """Return one line of text per run: folder, status, and its rows and seeds."""
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
    """Read a sweep recipe and validate its runs; nothing is written or run.

    Args:
        recipe: The sweep recipe, a YAML file.  It lists rows; a row is a label with settings.
        overrides: Settings of every run, as `section.field=value`; they override the settings of the rows.
        out: The folder of the sweep; if None, it is runs/NAME, where NAME is the name in the recipe.
        only: Labels of the rows to run; if empty, all rows are run.
        allow_code: Modules that may be imported for external components, such as `my_module:MyDivergence`.

    Raises:
        ConfigError: the recipe or one of its runs is invalid, or a label in `only` is unknown.
    """
    sweep = read_sweep(recipe)
    for label in only:
        if label not in sweep.rows:
            raise ConfigError(f"--only {label}: no such row; the rows are {', '.join(sweep.rows)}")
    folder = out or Path("runs") / sweep.name
    entries = expand(sweep, recipe, folder, overrides, allow_code)
    rows = tuple(only) or tuple(sweep.rows)
    return Plan(sweep=sweep, folder=folder, entries=entries, only=rows, allow_code=tuple(allow_code))


class SweepResult(NamedTuple):
    """The files of a sweep, and the commands that submit its runs to a cluster.

    Args:
        pages: Paths of the comparisons.  Each comparison table is written as HTML, Markdown, LaTeX and CSV.
        commands: Shell commands that the user must run to start the runs.  If empty, the runs have been executed.
    """

    pages: list[Path]
    commands: list[str]


def run_sweep(plan: Plan, *, jobs: int | None = None, on: str = "local") -> SweepResult:
    """Run the unfinished runs of a sweep, and compare all finished runs.

    Args:
        plan: The sweep.
        jobs: Number of parallel runs, >= 1.  If None, the executor chooses it: on this machine, it is 1 if there is an
            accelerator, such as a GPU, and otherwise the number of processor cores.
        on: The executor, as NAME or NAME=ADDRESS: "local" (processes on this machine), "ray", "ray=ADDRESS", or "slurm".  Slurm
            jobs are written and not submitted.

    Raises:
        BusyError: another process uses the folder of the sweep.
        ConfigError: the folder contains another sweep or other runs, the server of a teacher is not allowed, or the executor
            cannot be used.
        TrainingError: at least one run failed.  The finished runs are compared before the error is raised.  Its attribute
            `exit_code` is 75 if all failed runs can be retried.
        Interrupted: a signal arrived and the runs were stopped; the same call resumes them.
    """
    executor, statuses = plan.executor(on, jobs), plan.statuses()
    for entry in plan.selected:
        check_hosts(entry.run)
    with locked(plan.folder) as lock:  # the runs inherit the lock, so that the runs of a killed sweep keep the folder locked
        todo = _jobs(plan, statuses)
        if todo and plan.sweep.world == "toy":
            toy_world()
        failed, outcome = _run(plan, todo, statuses, executor, lock)
        pages = _write_comparisons(plan, statuses)
    if failed:
        which = f"{len(failed)} of {len(todo)} runs failed: {'; '.join(failed)}"
        error = TrainingError(f"{plan.folder}: {which}; fix the cause and repeat the command")
        if set(outcome.codes.values()) - {0} <= RETRYABLE:
            error.exit_code = files.TRY_AGAIN
        raise error
    return SweepResult(pages, list(outcome.commands))


# --- status -------------------------------------------------------------------------------------------------------------


def _status(config: Run) -> str:
    """Read the status of a run from its folder; "waiting" if the run has not started.

    Raises:
        ConfigError: the folder contains another run, or a run that another version of redistill wrote and that this version
            cannot use.
    """
    path = config.folder / RUN_FILE
    if not path.is_file():
        return "waiting"
    held = mapping(files.read_json(path))
    check_run_schema(config.folder, held, resumes=held.get("status") not in (TRAINED, FINISHED))
    mine, theirs = map(settings_of, compared(config, held))
    if is_extension(mine, theirs):
        check_run_schema(config.folder, held, resumes=True)
        return "running"
    if found := differences(mine, theirs):
        raise ConfigError(f"{config.folder}: contains another run ({found[0]}); choose another --out, or remove the folder")
    return str(held.get("status"))


# --- running ------------------------------------------------------------------------------------------------------------


def _jobs(plan: Plan, statuses: Mapping[Path, str]) -> list[Job]:
    """Write a recipe for each unfinished run and fine-tuning; return a job for each."""
    found: dict[Path, Job] = {}
    allowed = [f"--allow-code={module}" for module in plan.allow_code]
    allowed += [f"--allow-host={host}" for host in allowed_hosts()]
    for entry in plan.selected:
        if statuses[entry.run.folder] == FINISHED:
            continue
        needs: list[str] = []
        for config in (*entry.stages, entry.run):
            folder, is_stage = config.folder, config is not entry.run
            if is_stage and statuses[folder] in {TRAINED, FINISHED}:
                continue
            if folder not in found:
                recipe, name = folder / RECIPE_FILE, "train" if is_stage else "run"
                files.write_text(recipe, yaml.safe_dump({"schema": SCHEMA, **encode_run(config)}, sort_keys=False))
                command = python_module("redistill", name, str(recipe), "--out", str(folder), *allowed)
                found[folder] = Job(name=folder.name, command=command, log=folder / LOG_FILE, needs=tuple(needs))
            needs.append(folder.name)
    return list(found.values())


def _run(
    plan: Plan, todo: Sequence[Job], statuses: dict[Path, str], executor: Executor, lock: Sequence[int]
) -> tuple[list[str], Outcome]:
    """Run the jobs of a sweep.

    Args:
        plan: The sweep.
        todo: The jobs.
        statuses: Status of each run by its folder; updated in place when a job starts or ends.
        executor: The executor of the jobs.
        lock: File descriptors that hold the lock on the folder of the sweep; jobs on this machine inherit them.

    Returns:
        A phrase for each job that failed or was not started, and the result of the executor.
    """
    failed: list[str] = []

    def started(job: Job) -> None:
        statuses[job.log.parent] = "running"
        _write_sweep(plan, statuses)
        progress.started(job.name, job.log.parent)

    def ended(job: Job, code: int, seconds: float) -> None:
        folder = job.log.parent
        statuses[folder] = "failed" if code else FINISHED
        _write_sweep(plan, statuses)
        why = f"exit code {code}, {plain(last_line(job.log))} (log: {job.log})"
        if code:
            failed.append(f"{job.name}: {why}")
        progress.ended(job.name, seconds, f"failed: {why}" if code else _score(folder), failed=bool(code))

    _write_sweep(plan, statuses)
    with JobProgress(len(todo)) as progress:
        outcome = executor.execute(todo, lock=lock, on_start=started, on_end=ended)
    if not outcome.commands:
        failed += [
            f"{job.name}: not started, since a job that it needs failed" for job in todo if job.name not in outcome.codes
        ]
    return failed, outcome


def _write_sweep(plan: Plan, statuses: Mapping[Path, str]) -> None:
    """Write sweep.json: the rows of each comparison table, and the status of each run."""
    sweep = plan.sweep
    runs = [
        {"label": entry.label, "seed": entry.seed, "folder": entry.run.folder.name, "status": statuses[entry.run.folder]}
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


def _score(folder: Path) -> str:
    """Return the mean score of a run over its test sets and seeds, as text.

    The score is the primary metric of the first test set.  Test sets without this metric are left out.  If the run has no
    scores, the result is "".
    """
    path = folder / "scores.json"
    held = mapping(files.read_json(path)) if path.is_file() else {}
    found = Evaluation(label="", role="student", scores=held, answers={})
    if not found.datasets:
        return ""
    metric = found.measures(next(iter(found.datasets)))[0]
    means = (mean(found.seed_scores(name, metric.name).values()) for name in found.datasets)
    total = mean(value for value in means if value is not None)
    return "" if total is None else f"{metric.title} {score(total, metric.unit)}"


# --- comparison ---------------------------------------------------------------------------------------------------------


def _write_comparisons(plan: Plan, statuses: Mapping[Path, str]) -> list[Path]:
    """Write and print each comparison table of the sweep.

    Rows without a finished run are left out.

    Returns:
        The paths of the written files.
    """
    finished = {entry.label for entry in plan.entries if statuses[entry.run.folder] == FINISHED}
    pages = []
    for name, group in plan.sweep.tables.items():
        labels = [label for label in group.rows if label in finished]
        if not labels:
            continue
        outputs = [plan.folder / f"{name}.{suffix}" for suffix in FORMATS]
        pages += outputs
        base = group.baseline if group.baseline in labels else None
        print_comparison(build_comparison([plan.folder], outputs, baseline=base, published=group.published, labels=labels))
    return pages
