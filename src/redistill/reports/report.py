"""The HTML report of a run: self-contained, without JavaScript, deterministic."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import yaml

from redistill.records import ACCEPTANCE, PROPOSALS, Json
from redistill.reports import plots
from redistill.reports.comparison import GENERATED, Row, dataset_names, evaluations, measures_of, report_rows
from redistill.reports.folders import Evaluation, RunFolder, at, decoding_title, log_lines, mapping, number, read_run
from redistill.reports.logs import read_log, read_revisions
from redistill.reports.pages import render
from redistill.reports.statistics import deviation, mean, spread
from redistill.storage import files
from redistill.storage.redaction import plain, redacted_tree

NUM_ANSWERS = 12
NUM_REVISIONS = 8
NUM_EVENTS = 20
FIGURES = ("parameters", "bytes", "tokens_per_s")


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
    files.write_text(path, render("report.html", _page(read_run(run_folder), [read_run(folder) for folder in baselines])))
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
        One dict per row.  Its keys are dataset, model, role, metric (name of the data set's primary metric), title (heading of
        this metric), unit, num_seeds, num_prompts, difference (to the reference model), lower and upper (bounds of its 95 %
        confidence interval), versus (label of the reference model), note (why there is no difference), length_tokens,
        eos_rate, distinct_2, cross_entropy, kl and agreement; and the scores in `records.ACCEPTANCE`, if they were measured.
        The mean score in each metric has the name of the metric as its key; for the primary metric, the key with the suffix
        _sd has the standard deviation.  A value is None if it was not measured.

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
    models, own = evaluations(run, baselines), [found for found in (run.student, run.before) if found is not None]
    log = read_log(log_lines(run.path / "metrics.jsonl"), plots.TRAINING_NAMES)
    revisions = read_revisions(log_lines(run.path / "revisions.jsonl"))
    rows = report_rows(models)
    drafts = [row for row in rows if row.scores["acceptance"] is not None]
    data = _data(mapping(run.description.get("data")))
    needed = {
        "scores of this run (scores.json)": run.student,
        "scores of the teacher (teacher/scores.json)": run.teacher,
        "scores of the student before training (before/scores.json)": run.before,
        "training metrics (metrics.jsonl)": log,
        "corrections (revisions.jsonl; only methods with SCRG record them)": revisions.count,
        **{f"scores of the baseline {baseline.name}": baseline.student for baseline in baselines},
    }
    return {
        "name": run.name,
        "run": {key: run.description.get(key) for key in ("method", "status", "created", "commit", "command")},
        "qualities": list(_qualities(rows)),
        "decodings": [] if run.student is None else list(_decodings(run.student)),
        "drafts": [list(found) for _, found in itertools.groupby(drafts, key=lambda row: row.column)],
        "proposals": range(1, PROPOSALS + 1),
        "datasets": [list(found) for _, found in itertools.groupby(rows, key=lambda row: row.column)],
        "primaries": list(dict.fromkeys(row.measures[0].heading for row in rows)),
        "answers": list(_answers(models)),
        "charts": plots.panels(log, measures_of(dataset_names(own), own)),
        "events": log.events.items(NUM_EVENTS),
        "kinds": sorted(log.kinds.items()),
        "num_events": log.events.count,
        "revisions": revisions.items(NUM_REVISIONS),
        "num_revisions": revisions.count,
        "sizes": _sizes(run),
        "data": data,
        "columns": list(dict.fromkeys(key for about in data.values() for key in about)),
        "spans": mapping(run.description.get("spans")),
        # Secrets are masked first, since YAML may break them across lines.
        "config": yaml.safe_dump(
            redacted_tree(run.description.get("config")) or {}, sort_keys=False, allow_unicode=True, width=110
        ),
        "machine": mapping(run.description.get("machine")),
        "versions": mapping(run.description.get("versions")),
        "missing": [what for what, found in needed.items() if not found],
    }


def _qualities(rows: Sequence[Row]) -> Iterator[dict[str, object]]:
    """Yield one dict per primary metric, with the mean scores of student and teacher.

    Means are taken over the data sets with this primary metric.  The value of "gain" is the mean difference between the student
    and the reference model: the first baseline, or the student before training if there is no baseline.
    """
    for primary in dict.fromkeys(row.measures[0] for row in rows if row.role == "student"):
        scored = [row for row in rows if row.measures[0] == primary]
        student = [row for row in scored if row.role == "student"]
        compared = [row for row in student if row.interval is not None]
        yield {
            "primary": primary,
            "num_datasets": len(student),
            "student": mean(row.primary.mean for row in student if row.primary.mean is not None),
            "teacher": mean(row.primary.mean for row in scored if row.role == "teacher" and row.primary.mean is not None),
            "compared": compared,
            "gain": mean(row.interval.difference for row in compared if row.interval is not None),
            "num_ahead": sum(row.tone > 0 for row in compared),
        }


def _decodings(student: Evaluation) -> Iterator[dict[str, object]]:
    """Yield one dict for each data set with further decodings.

    A dict has the scores of the student for each decoding; the main decoding is the first.
    """
    for dataset in student.datasets:
        if not (titles := student.decodings(dataset)):
            continue
        measures, rows = student.measures(dataset), []
        main = decoding_title(student.settings.get("sampling"))
        names = dict[str | None, str]({None: f"main ({main})"}) | titles
        for name, title in names.items():
            scores = (*(measure.name for measure in measures), *GENERATED)
            found = {each: list(student.seed_scores(dataset, each, name).values()) for each in scores}
            means = {each: mean(values) for each, values in found.items()}
            primary = found[measures[0].name]
            rows.append({"title": title, "means": means, "deviation": deviation(primary), "num_seeds": len(primary)})
        yield {"dataset": dataset, "measures": measures, "rows": rows}


def _data(manifest: Mapping[str, Json]) -> dict[str, dict[str, Json]]:
    """Return the descriptions of the data sets in run.json, by name.

    The value of the key "templates" is the number of rows by template, as text.
    """
    data = {role: dict(about) for role, about in manifest.items() if isinstance(about, Mapping) and role != "templates"}
    for role, counts in mapping(manifest.get("templates")).items():
        data.setdefault(role, {})["templates"] = ", ".join(f"{count} {name}" for name, count in mapping(counts).items())
    return data


def _sizes(run: RunFolder) -> dict[str, dict[str, object]]:
    """Return the name, the sizes and the speed of the models "teacher" and "student".

    The sizes are the number of parameters and the memory in bytes; the speed is in tokens per second.  A value that the
    evaluation measured takes precedence over the value in run.json.
    """
    sizes: dict[str, dict[str, object]] = {}
    for role, evaluation in (("teacher", run.teacher), ("student", run.student)):
        recorded = mapping(at(run.description, "models", role))
        measured = {} if evaluation is None else evaluation.scores
        figures = {
            key: number(found[key]) for found in (recorded, measured) for key in FIGURES if number(found.get(key)) is not None
        }
        if recorded or measured:
            sizes[role] = {"name": str(recorded.get("name") or measured.get("model") or role), **figures}
    return sizes


def _answers(models: Sequence[Evaluation]) -> Iterator[dict[str, object]]:
    """Yield prompts of each data set, with the responses of all models.

    The prompts are evenly spaced in the ranking by the score of the last model; the prompt with the worst score is first. The
    responses are those for the lowest evaluation seed.
    """
    first: dict[str, list[tuple[Evaluation, Mapping[str, Mapping[str, Json]]]]] = {}
    for dataset in dataset_names(models):
        for model in models:
            seeds = model.answers.get(dataset)
            if seeds and (lines := seeds[min(seeds, key=int)]):
                first.setdefault(dataset, []).append((model, lines))
    for index, (dataset, found) in enumerate(first.items()):
        ranked, lines = found[-1]
        primary = ranked.measures(dataset)[0]
        goodness = {prompt: primary.sign * (number(line.get(primary.name)) or 0.0) for prompt, line in lines.items()}
        for prompt in spread(goodness, NUM_ANSWERS // len(first) + (index < NUM_ANSWERS % len(first))):
            answers = [(model, answered[prompt]) for model, answered in found if prompt in answered]
            yield {"dataset": dataset, "id": prompt, "primary": primary, "line": lines[prompt], "answers": answers}
