"""Lists the data that a run folder lacks, for the report of the run."""

from collections.abc import Sequence
from pathlib import Path

from redistill.reports.categories import has_categories
from redistill.reports.folders import RunFolder, at, log_lines
from redistill.reports.logs import RunLog
from redistill.reports.tokens import ANSWERS, REVISIONS
from redistill.reports.windows import FILE as WINDOWS


def missing_parts(run: RunFolder, baselines: Sequence[RunFolder], log: RunLog, num_revisions: int) -> list[str]:
    """Return a phrase for each part of a report that the run folder has no data for.

    Args:
        run: The run of the report.
        baselines: The runs that it is compared with.
        log: The training log of the run.
        num_revisions: Number of logged corrections.

    Raises:
        CheckpointError: a file is damaged.
    """
    scores = None if run.student is None else run.student.scores
    uses_dac_kl = "kept_mass" in log.train
    needed = {
        "scores of this run (scores.json)": run.student,
        "scores of the teacher (teacher/scores.json)": run.teacher,
        "scores of the student before training (before/scores.json)": run.before,
        "categories of test rows (responses/*.jsonl)": run.student is None or has_categories(run.student),
        "latency (scores.json)": scores is None or scores.get("latency"),
        "peak memory of answers (scores.json)": scores is None or scores.get("peak_bytes"),
        "training metrics (metrics.jsonl)": log,
        "recovered mass of DAC-KL (metrics.jsonl)": not uses_dac_kl or "recovered" in log.train,
        "windows of DAC-KL (windows.jsonl; only with a local teacher)": not uses_dac_kl or _has_lines(run.path / WINDOWS),
        "cost of training (run.json)": run.description.get("cost"),
        "peak memory of training (run.json)": not run.description.get("cost") or at(run.description, "cost", "peak_bytes"),
        "corrections (revisions.jsonl; only methods with SCRG record them)": num_revisions,
        "divergences by token of answers (positions.jsonl; only with a local teacher)": _has_lines(run.path / ANSWERS),
        "divergences by token of corrections (revision-positions.jsonl; only with a local teacher)": not num_revisions
        or _has_lines(run.path / REVISIONS),
        **{f"scores of the baseline {baseline.name}": baseline.student for baseline in baselines},
    }
    return [what for what, found in needed.items() if not found]


def _has_lines(path: Path) -> bool:
    return next(iter(log_lines(path)), None) is not None
