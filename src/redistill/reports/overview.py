"""The verdict of a report: the result in words, and answers to common questions."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from redistill.reports import facts
from redistill.reports.categories import weakest_sentence
from redistill.reports.comparison import Row
from redistill.reports.folders import Evaluation, RunFolder
from redistill.reports.lineup import Lineup
from redistill.reports.logs import Line, RunLog
from redistill.reports.sizes import quality_picture, ratios
from redistill.reports.thinning import Spaced
from redistill.reports.verdict import acceptance_sentences, difference_sentence, kept_sentence


@dataclass(frozen=True, kw_only=True)
class Overview:
    """What a reader wants to know first.

    Args:
        verdict: Sentences about quality, size and speed, and about the difference to the reference model.
        picture: Chart of quality by size, as an <svg> element; None if fewer than two models can be shown.
        answers: Pairs of a question and an answer, each of one sentence.
    """

    verdict: Sequence[str]
    picture: Markup | None
    answers: Sequence[tuple[str, str]]


def overview_of(
    runs: Sequence[RunFolder],
    models: Sequence[Evaluation],
    rows: Sequence[Row],
    overall: Sequence[Row],
    log: RunLog,
    revisions: Spaced[Line],
    lineup: Lineup | None,
) -> Overview:
    """Return the overview of a run.

    Args:
        runs: The run, followed by its baselines.
        models: The evaluations, that of the run last.
        rows: Scores, one row per data set and model.
        overall: Scores, one row per primary metric and model.
        log: The training log.
        revisions: The corrections of student text.
        lineup: The run and its baselines as a comparison; None without baselines.
    """
    run, *baselines = runs
    student = next((row for row in overall if row.role == "student"), None)
    versus = None if student is None else student.versus
    single = [row for row in rows if row.role == "student"]
    scored = bool(models) and models[-1].role == "student"
    return Overview(
        verdict=list(_verdict(run, overall)),
        picture=quality_picture(run, models, [row for row in overall if row.measures == overall[0].measures])
        if overall
        else None,
        answers=[
            *((f"Is it better on {row.column}?", difference_sentence(row)) for row in single if len(single) > 1),
            ("Where does it fail?", weakest_sentence(models, versus) if scored else weakest_sentence((), None)),
            ("What did training cost?", facts.cost_sentence(run, baselines[0] if baselines else None, versus)),
            ("What did SCRG change?", facts.scrg_sentence(log, revisions)),
            ("Did DAC-KL collapse?", facts.dac_kl_sentence(log, run)),
            ("What differs from the baseline?", facts.changes_sentence(lineup)),
            ("How can it be repeated?", facts.repeat_sentence(run)),
        ],
    )


def _verdict(run: RunFolder, overall: Sequence[Row]) -> Sequence[str]:
    """Return the sentences of the verdict, for each primary metric."""
    teachers = {row.measures[0].name: row for row in overall if row.role == "teacher"}
    sentences = []
    for student in (row for row in overall if row.role == "student"):
        teacher = teachers.get(student.measures[0].name)
        sentences += [] if teacher is None else [kept_sentence(student, teacher, ratios(run))]
        sentences.append(difference_sentence(student))
        sentences += acceptance_sentences(student)
    return sentences or ["The run folder has no scores of the trained student, so there is no verdict."]
