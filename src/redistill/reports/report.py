"""The HTML report of a run: self-contained, without JavaScript, deterministic."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from redistill.reports import plots
from redistill.reports.comparison import Row, dataset_names, evaluations, measures_of, report_rows
from redistill.reports.folders import Evaluation, Measure, RunFolder, mapping, number, read_run
from redistill.reports.pages import NOTHING, difference, heading, large, render, score
from redistill.reports.statistics import evenly, mean, spread
from redistill.storage import files
from redistill.storage.redaction import plain, redacted_tree

NUM_ANSWERS = 12
NUM_REVISIONS = 8


def build_report(run_folder: Path, baselines: Sequence[Path] = (), out: Path | None = None) -> Path:
    """Write the report of a run; the page lists missing files.

    Args:
        run_folder: Folder of the run.
        baselines: Run folders to compare with; differences are to the first.
        out: File to write; None selects `report.html` in the run folder.

    Returns:
        The path of the page.

    Raises:
        CheckpointError: a folder is not a run folder, or a file in it is damaged.
        OutputError: the page cannot be written.
    """
    run, others = read_run(Path(run_folder)), [read_run(Path(folder)) for folder in baselines]
    path = Path(run_folder) / "report.html" if out is None else Path(out)
    files.write_text(path, render("report.html", _page(run, others)))
    return path


def summary_table(run_folder: Path, baselines: Sequence[Path] = ()) -> list[dict[str, Any]]:
    """The main results of a run as data: one row per data set and model.

    Control characters are removed, so that texts are safe to print on a terminal.

    Args:
        run_folder: Folder of the run.
        baselines: Run folders to compare with; differences are to the first.

    Returns:
        Rows with dataset, model, role, metric (name of the data set's primary metric), title (its heading), unit, num_seeds,
        num_prompts, difference, lower, upper, versus, note, length_tokens, eos_rate, distinct_2, cross_entropy, kl, agreement,
        and each metric under its name; for the primary metric also NAME_sd, its standard deviation. None means not measured.

    Raises:
        CheckpointError: a folder is not a run folder, or a file in it is damaged.
    """
    run, others = read_run(Path(run_folder)), [read_run(Path(folder)) for folder in baselines]
    return [_flat(row) for row in report_rows(evaluations(run, others))]


def _flat(row: Row) -> dict[str, Any]:
    interval = dict.fromkeys(("difference", "lower", "upper")) if row.interval is None else asdict(row.interval)
    primary = row.measures[0]
    texts = {"dataset": row.column, "model": row.model, "role": row.role, "versus": row.versus, "note": row.note}
    return {
        **{name: None if text is None else plain(text) for name, text in texts.items()},
        "metric": primary.name,
        "title": plain(heading(primary)),
        "unit": plain(primary.unit),
        primary.name: row.primary.mean,
        f"{primary.name}_sd": row.primary.deviation,
        "num_seeds": row.primary.num_seeds,
        "num_prompts": row.num_prompts,
        **interval,
        **row.scores,
    }


def _page(run: RunFolder, baselines: Sequence[RunFolder]) -> dict[str, Any]:
    models = evaluations(run, baselines)
    rows = report_rows(models)
    charts = [{"group": p.group, "title": p.title, "svg": Markup(p.svg)} for p in plots.panels(run.metrics, _validated(run))]
    description = run.description
    return {
        "run": {key: description.get(key) for key in ("method", "status", "created", "commit", "command")},
        "name": run.name,
        "tiles": list(_tiles(run, rows)),
        "datasets": [_dataset(name, [row for row in rows if row.column == name]) for name in dataset_names(models)],
        "primaries": list(dict.fromkeys(heading(row.measures[0]) for row in rows)),
        "answers": list(_answers(models)),
        "charts": charts,
        "revisions": [_revision(run.revisions[index]) for index in evenly(len(run.revisions), NUM_REVISIONS)],
        "num_revisions": len(run.revisions),
        "sizes": list(_sizes(run)),
        "data": _data(mapping(description.get("data"))),
        "spans": mapping(description.get("spans")),
        "config": _config(description.get("config")),
        "machine": mapping(description.get("machine")),
        "versions": mapping(description.get("versions")),
        "missing": list(_missing(run, baselines)),
    }


def _config(tree: Any) -> str:
    """The settings as YAML; secrets are masked first, since YAML may break them across lines."""
    return yaml.safe_dump(redacted_tree(tree) or {}, sort_keys=False, allow_unicode=True, width=110)


def _dataset(name: str, rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "name": name,
        "rows": rows,
        "primary": rows[0].measures[0],
        "others": rows[0].measures[1:],
        "num_prompts": max(row.num_prompts for row in rows),
        "num_seeds": max(row.primary.num_seeds for row in rows),
        "versus": next((row.versus for row in rows if row.versus), None),
        "largest": max((row.primary.mean for row in rows if row.primary.mean is not None), default=0.0),
    }


def _tiles(run: RunFolder, rows: Sequence[Row]) -> Iterator[tuple[str, str, str]]:
    """(value, description, comparison) of each tile in the page header."""
    student = [row for row in rows if row.role == "student"]
    primaries = list(dict.fromkeys(row.measures[0] for row in student))
    for primary in primaries:
        of_metric = [row for row in rows if row.measures[0] == primary]
        yield from _quality(primary, of_metric, named=len(primaries) > 1)
    size = dict(_sizes(run))
    for key, text in (("parameters", "smaller than the teacher"), ("tokens_per_s", "faster than the teacher")):
        ratio = _ratio(size.get("teacher", {}).get(key), size.get("student", {}).get(key), inverse=key == "tokens_per_s")
        if ratio is not None:
            unit = "parameters" if key == "parameters" else "tokens per second"
            values = " versus ".join(large(size[role][key]) for role in ("student", "teacher"))
            yield f"{ratio:.1f}×", text, f"{values} {unit}"


def _quality(primary: Measure, rows: Sequence[Row], *, named: bool) -> Iterator[tuple[str, str, str]]:
    """Tiles of a primary metric: the student's mean over the data sets with this metric, and its mean difference."""
    student = [row for row in rows if row.role == "student"]
    ours = mean(row.primary.mean for row in student if row.primary.mean is not None)
    if ours is not None:
        theirs = mean(row.primary.mean for row in rows if row.role == "teacher" and row.primary.mean is not None)
        title = heading(primary)
        yield (
            score(ours, primary.unit) or "",
            f"{title}, mean of {len(student)} data sets" if len(student) > 1 else title,
            ("" if theirs is None else f"teacher: {score(theirs, primary.unit)}"),
        )
    compared = [row for row in student if row.interval is not None]
    if compared:
        gain = mean(row.interval.difference for row in compared if row.interval)
        ahead = sum(row.tone > 0 for row in compared)
        side = "above" if primary.sign > 0 else "below"
        text = f"difference to {compared[0].versus}"
        yield (
            difference(gain, primary.unit),
            f"{primary.title}, {text}" if named else text,
            f"95 % interval {side} 0 on {ahead} of {len(compared)}",
        )


def _validated(run: RunFolder) -> tuple[Measure, ...]:
    """Metrics that validation may have logged: those of the run's test sets."""
    models = [found for found in (run.student, run.before) if found is not None]
    return measures_of(dataset_names(models), models)


def _ratio(teacher: Any, student: Any, *, inverse: bool) -> float | None:
    above, below = (student, teacher) if inverse else (teacher, student)
    return above / below if above is not None and below else None


def _sizes(run: RunFolder) -> Iterator[tuple[str, dict[str, Any]]]:
    for role, evaluation in (("teacher", run.teacher), ("student", run.student)):
        recorded = mapping(mapping(run.description.get("models")).get(role))
        measured: Mapping[str, Any] = {} if evaluation is None else evaluation.scores
        if recorded or measured:
            figures = {key: _first(measured.get(key), recorded.get(key)) for key in ("parameters", "bytes", "tokens_per_s")}
            yield role, {"name": str(recorded.get("name") or measured.get("model") or role), **figures}


def _first(*values: Any) -> float | None:
    return next((known for value in values if (known := number(value)) is not None), None)


def _answers(models: Sequence[Evaluation]) -> Iterator[dict[str, Any]]:
    """Prompts of each data set from the lowest to the highest score, with all models' first-seed responses."""
    datasets = [name for name in dataset_names(models) if any(model.answers.get(name) for model in models)]
    for index, dataset in enumerate(datasets):
        count = NUM_ANSWERS // len(datasets) + (index < NUM_ANSWERS % len(datasets))
        first = [(model, _first_seed(model, dataset)) for model in models]
        ranked, lines_of_ranked = next((model, lines) for model, lines in reversed(first) if lines)
        primary = ranked.measures(dataset)[0]
        goodness = {key: primary.sign * (number(line.get(primary.name)) or 0.0) for key, line in lines_of_ranked.items()}
        for prompt in spread(goodness, count):
            line = lines_of_ranked[prompt]
            yield {
                "dataset": dataset,
                "id": prompt,
                "prompt": line.get("prompt", ""),
                "references": list(line.get("references") or []),
                "answers": [(model, _answer(lines[prompt], primary)) for model, lines in first if prompt in lines],
            }


def _answer(line: Mapping[str, Any], primary: Measure) -> dict[str, Any]:
    shown = f"{heading(primary)} {score(line.get(primary.name), primary.unit, 1) or NOTHING}"
    return {"response": line.get("response") or "", "score": shown, "cut": line.get("finished") is False}


def _first_seed(model: Evaluation, dataset: str) -> Mapping[str, Mapping[str, Any]]:
    seeds = model.answers.get(dataset, {})
    return seeds[min(seeds, key=int)] if seeds else {}


def _revision(line: Mapping[str, Any]) -> dict[str, Any]:
    shown = {
        key: line.get(key) or "" for key in ("prompt", "kept", "student_token", "teacher_token", "student_tail", "new_tail")
    }
    for key in ("student_token", "teacher_token"):
        if not str(shown[key]).strip():  # highlighting would not be visible on white space alone
            shown[key] = str(shown[key]).replace("\n", "⏎").replace(" ", "␣").replace("\t", "⇥") or "∅"
    return {
        **shown,
        "step": line.get("step"),
        "sample": line.get("sample"),
        "position": line.get("position"),
        "kl": number(line.get("kl")),
    }


def _data(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The data manifest as a table: one row per role, columns in order of appearance."""
    rows = {str(role): mapping(about) for role, about in manifest.items() if isinstance(about, Mapping)}
    columns = list(dict.fromkeys(str(key) for about in rows.values() for key in about))
    return {"columns": columns, "rows": rows}


def _missing(run: RunFolder, baselines: Sequence[RunFolder]) -> Iterator[str]:
    if run.student is None:
        yield "scores of this run (scores.json)"
    if run.teacher is None:
        yield "scores of the teacher (teacher/scores.json)"
    if run.before is None:
        yield "scores of the student before training (before/scores.json)"
    if not run.metrics:
        yield "training metrics (metrics.jsonl)"
    if not run.revisions:
        yield "corrections (revisions.jsonl; only methods with SCRG record them)"
    for baseline in baselines:
        if baseline.student is None:
            yield f"scores of the baseline {baseline.name}"
