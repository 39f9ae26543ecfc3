"""The HTML report of a run: one file, deterministic, readable without scripts."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import yaml

from redistill.records import ACCEPTANCE, Json
from redistill.reports import plots
from redistill.reports.answers import answers_section
from redistill.reports.budgets import check_budgets
from redistill.reports.comparison import Column, Row, dataset_names, evaluations, measures_of, report_rows
from redistill.reports.costs import machines, teacher_cost
from redistill.reports.facts import command_of, cost_of, lineup_of
from redistill.reports.folders import Measure, RunFolder, distinct_labels, log_lines, mapping, read_run
from redistill.reports.judgements import judge_cost_table, judge_table, read_judgements
from redistill.reports.lineup import Entry
from redistill.reports.logs import Revisions, RunLog, read_log, read_revisions
from redistill.reports.missing import missing_parts
from redistill.reports.overview import overview_of
from redistill.reports.pages import render
from redistill.reports.results import results_section
from redistill.reports.settings import different_settings
from redistill.reports.sizes import model_sizes, size_table
from redistill.reports.tables import Table, cost_table
from redistill.reports.tokens import position_chart, tokens_section
from redistill.reports.windows import windows_section
from redistill.storage import files
from redistill.storage.redaction import plain, redacted_tree

NUM_REVISIONS = 8
NUM_EVENTS = 20


def build_report(run_folder: Path, baselines: Sequence[Path] = (), out: Path | None = None) -> Path:
    """Write the HTML report of a run, and return its path.

    If files of the run are missing, the report lists them.

    Args:
        run_folder: Folder of the run.
        baselines: Run folders to compare with.  The reference model is the student of the first of these runs; without
            baselines, it is the student before training.
        out: File to write; if None, it is `report.html` in the run folder.

    Returns:
        The path of the page.

    Raises:
        CheckpointError: a folder is not a run folder, or a file in it is damaged.
        OutputError: the page cannot be written.
    """
    path = run_folder / "report.html" if out is None else out
    page = _page(read_run(run_folder), [read_run(folder) for folder in baselines])
    files.write_text(path, render("report.html", page, scripts=["responses.js", "tokens.js"]))
    return path


def summary_rows(run_folder: Path, baselines: Sequence[Path] = ()) -> list[Row]:
    """Return the main results of a run, one row per data set and model.

    The arguments and errors are those of `summary_table`.
    """
    return report_rows(evaluations(read_run(run_folder), [read_run(folder) for folder in baselines]))


def summary_table(run_folder: Path, baselines: Sequence[Path] = ()) -> list[dict[str, object]]:
    """Return the main results of a run as data: one row per data set and model.

    Control characters are removed, so that texts are safe to print on a terminal.

    Args:
        run_folder: Folder of the run.
        baselines: Run folders to compare with.  The reference model is the student of the first of these runs; without
            baselines, it is the student before training.

    Returns:
        One dict per row; a value is None if it was not measured.  The keys are:

        - "dataset", "model", "role", "num_seeds" and "num_prompts";
        - "metric" (name of the primary metric of the data set), "title" (heading of this metric) and "unit";
        - "difference" (to the reference model), "lower" and "upper" (bounds of its 95 % confidence interval), "versus" (label
          of the reference model) and "note" (why there is no difference);
        - "length_tokens", "eos_rate", "distinct_2", "cross_entropy", "kl" and "agreement";
        - the scores in `records.ACCEPTANCE`, if they were measured;
        - the name of each metric, for the mean score; for the primary metric, also the name with the suffix "_sd", for the
          standard deviation.

    Raises:
        CheckpointError: a folder is not a run folder, or a file in it is damaged.
    """
    return [_flat(row) for row in summary_rows(run_folder, baselines)]


def _flat(row: Row) -> dict[str, object]:
    primary = row.measures[0]
    texts = {"dataset": row.column, "model": row.model, "role": row.role, "versus": row.versus, "note": row.note}
    return {
        **{name: None if text is None else plain(text) for name, text in texts.items()},
        "metric": primary.name,
        "title": plain(primary.heading),
        "unit": plain(primary.unit),
        primary.name: row.primary.mean,
        f"{primary.name}_sd": row.primary.deviation,
        "num_seeds": row.primary.num_seeds,
        "num_prompts": row.num_prompts,
        **(dict.fromkeys(("difference", "lower", "upper")) if row.interval is None else asdict(row.interval)),
        **{name: value for name, value in row.scores.items() if value is not None or name not in ACCEPTANCE},
    }


def _page(run: RunFolder, baselines: Sequence[RunFolder]) -> dict[str, object]:
    """Return the variables for the template of the report, by name."""
    models = evaluations(run, baselines)
    rows, overall = report_rows(models), report_rows(models, overall=True)
    versus = next((row.versus for row in overall if row.role == "student"), None)
    labels = distinct_labels([run, *baselines])
    lineup = lineup_of([run, *baselines], labels) if baselines else None
    log = read_log(log_lines(run.path / "metrics.jsonl"), plots.TRAINING_NAMES)
    revisions = read_revisions(log_lines(run.path / "revisions.jsonl"))
    judged = [(labels[0], found) for found in read_judgements(run.path)]
    return {
        "name": run.name,
        "run": {key: run.description.get(key) for key in ("method", "status", "created", "commit")},
        "overview": overview_of([run, *baselines], models, rows, overall, log, revisions, lineup),
        **results_section(models, rows),
        "answers": answers_section(models, versus),
        "charts": plots.panels(log, _validated(run), _baseline_log(labels, baselines)),
        **_logged(log, revisions),
        "sizes": model_sizes(run),
        "size_table": size_table([run, *baselines], models, [row for row in overall if row.measures == overall[0].measures])
        if overall
        else None,
        "cost_table": _cost_table([run, *baselines], labels, overall),
        "changes": [] if lineup is None else different_settings(lineup),
        "budgets": None if lineup is None else check_budgets(lineup),
        "judge_table": judge_table(judged),
        "judge_cost": judge_cost_table(judged),
        "tokens": tokens_section(run, (labels[0], labels[1], baselines[0]) if baselines else None),
        "windows": windows_section(run),
        **_setup(run),
        "missing": missing_parts(run, baselines, log, revisions.count),
    }


def _validated(run: RunFolder) -> tuple[Measure, ...]:
    """Return the metrics that validation may have logged."""
    own = [found for found in (run.student, run.before) if found is not None]
    return measures_of(dataset_names(own), own)


def _baseline_log(labels: Sequence[str], baselines: Sequence[RunFolder]) -> tuple[str, str, RunLog] | None:
    """Return the labels of a run and its first baseline, and the log of the baseline.

    The result is None if there is no baseline, or if the baseline has no log.
    """
    if not baselines:
        return None
    log = read_log(log_lines(baselines[0].path / "metrics.jsonl"), plots.TRAINING_NAMES)
    return (labels[0], labels[1], log) if log else None


def _logged(log: RunLog, revisions: Revisions) -> dict[str, object]:
    """Return the template variables for events and corrections."""
    return {
        "events": log.events.items(NUM_EVENTS),
        "kinds": sorted(log.kinds.items()),
        "num_events": log.events.count,
        "revisions": revisions.items(NUM_REVISIONS),
        "num_revisions": revisions.count,
        "position_chart": position_chart(revisions.positions),
    }


def _cost_table(runs: Sequence[RunFolder], labels: Sequence[str], overall: Sequence[Row]) -> Table | None:
    """Return the table of training costs and scores of a run and its baselines.

    The result is None if there are no scores, or if no run has recorded its training time.
    """
    costs = {label: cost_of(run) for label, run in zip(labels, runs, strict=True)}
    if not overall or all(cost.figures["seconds"] is None for cost in costs.values()):
        return None
    entries = [Entry(label=label, seed=0, run=run) for label, run in zip(labels, runs, strict=True)]
    column = Column(overall[0].column, (overall[0].column,), overall[0].measures)
    return cost_table(costs, teacher_cost(entries), column, overall, machines(entries))


def _setup(run: RunFolder) -> dict[str, object]:
    """Return the template variables for data, recipe, machine and versions."""
    data = _data(mapping(run.description.get("data")))
    return {
        "data": data,
        "columns": list(dict.fromkeys(key for about in data.values() for key in about)),
        "spans": mapping(run.description.get("spans")),
        # Secrets are masked first, since YAML may break them across lines.
        "config": yaml.safe_dump(
            redacted_tree(run.description.get("config")) or {}, sort_keys=False, allow_unicode=True, width=110
        ),
        "machine": mapping(run.description.get("machine")),
        "versions": mapping(run.description.get("versions")),
        "command": command_of(run),
    }


def _data(manifest: Mapping[str, Json]) -> dict[str, dict[str, Json]]:
    """Return the descriptions of the data sets in run.json, by name.

    The value of the key "templates" is the number of rows by template, as text.
    """
    data = {role: dict(about) for role, about in manifest.items() if isinstance(about, Mapping) and role != "templates"}
    for role, counts in mapping(manifest.get("templates")).items():
        data.setdefault(role, {})["templates"] = ", ".join(f"{count} {name}" for name, count in mapping(counts).items())
    return data
