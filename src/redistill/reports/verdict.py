"""The verdict on a model in words.

A difference is called settled if its 95 % interval excludes 0 and its p-value is at most 5 %.  If several methods are compared,
this is the p-value after Holm's correction.  If the interval contains 0, the verdict states how many prompts or training seeds
would settle the difference.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from redistill.records import FRACTION, PERCENT, PROPOSALS
from redistill.reports.comparison import Row
from redistill.reports.pages import counted, difference, fixed, percent, score
from redistill.reports.tables import p_value

SIGNIFICANT = 0.05
"""Largest p-value of a settled difference."""
MOST = 100_000
"""The largest number of prompts or seeds that a verdict recommends."""


@dataclass(frozen=True)
class Needed:
    """The sample size that would settle a difference; see `needed`.

    Args:
        count: Total number of prompts or training seeds, rounded up to two significant digits.
        unit: What is counted.
    """

    count: int
    unit: Literal["prompts", "training seeds"]


def is_settled(row: Row) -> bool:
    """Return whether the difference of a row to its reference model is settled.

    The 95 % interval of the difference excludes 0, and the p-value after Holm's correction is at most 5 %.  Rows of models that
    are not ranked have no such correction; their p-value is used without it.
    """
    return row.tone != 0 and unconfirmed(row) is None


def unconfirmed(row: Row) -> float | None:
    """Return the p-value if only this value prevents that the difference is settled.

    The 95 % interval of the difference then excludes 0, but the p-value after Holm's correction is above 5 %.  Otherwise, the
    result is None.
    """
    if row.contrast is None or row.tone == 0:
        return None
    p = row.contrast.p if row.contrast.p_holm is None else row.contrast.p_holm
    return p if p > SIGNIFICANT else None


def p_in_words(row: Row) -> str:
    """Return the p-value of a difference in words.

    The text is, for example, "p = 0.196 after Holm's correction for several methods".  The correction is not mentioned if it
    did not change the p-value.

    Raises:
        ValueError: the row has no difference.
    """
    if row.contrast is None:
        raise ValueError(f"p_in_words: {row.model} has no difference to a reference model; check row.contrast first")
    p, corrected = row.contrast.p, row.contrast.p_holm
    if corrected is None or corrected == p:
        return f"p = {p_value(p)}"
    return f"p = {p_value(corrected)} after Holm's correction for several methods"


def needed(row: Row) -> Needed | None:
    r"""Compute how many prompts or training seeds would settle a difference.

    .. math:: V_s + k\,(V_p + V_r) = \Bigl( \frac{d}{D} \Bigr)^2 V, \qquad n' = n / k

    The result is the number for which the 95 % interval of the difference excludes 0.  Holm's correction is not considered.  d
    is the present difference, n is the present number of prompts, and D is the smallest difference that n prompts detect
    (`Contrast.detectable`).  V is the variance of d.  V_s, V_p and V_r are its parts due to training seeds, to prompts and to
    the residual (`inference.Variance`).  If d is the true difference, the interval for n' prompts excludes 0 with a probability
    of 80 %.  For trained students, V_s is 0, so n' = n (D / d)^2, where D is 2.8 times the standard error.

    If training seeds contribute more to the variance than prompts, n and n' are numbers of training seeds, and V_s and V_p are
    exchanged.

    Returns:
        The total number of prompts or of training seeds.  None if the model is not compared, if the interval excludes 0, or if
        no number up to 100,000 (`MOST`) is sufficient.
    """
    found = row.contrast
    if found is None or row.tone != 0 or not found.detectable or found.variance is None or not found.interval.difference:
        return None
    parts = found.variance
    target = (found.interval.difference / found.detectable) ** 2 * parts.total
    unit: Literal["prompts", "training seeds"] = "training seeds" if parts.seeds > parts.prompts else "prompts"
    present, larger, other = (
        (found.num_seeds, parts.seeds, parts.prompts)
        if parts.seeds > parts.prompts
        else (row.num_prompts, parts.prompts, parts.seeds)
    )
    factor = (target - other) / (larger + parts.residual)
    if factor <= present / MOST:
        return None
    return Needed(_rounded_up(max(present / factor, present + 1)), unit)


def difference_sentence(row: Row) -> str:
    """Return the verdict: better or worse, by how much, and whether it is settled.

    `is_settled` defines a settled difference.  If the interval contains 0, the sentence states how many prompts or training
    seeds would settle the difference (`needed`).  If only the p-value is too large, the sentence states it.  If the models are
    not compared, the sentence states the reason.

    Args:
        row: Scores of the model, with the difference to its reference model.
    """
    primary, other = row.measures[0], row.versus or "a reference model"
    where = f" on {row.column}" if row.column else ""
    if row.interval is None:
        return f"{row.model} is not compared with {other}{where}: {row.note or 'there is no other model'}."
    shown, sample = amount(row), _sample(row)
    if is_settled(row):
        return f"{row.model} is {'better' if row.tone > 0 else 'worse'} than {other}{where}: {shown}, settled with {sample}."
    tendency = "worse" if row.interval.difference * primary.sign < 0 else "better"
    if unconfirmed(row) is not None:
        return (
            f"{row.model} may be {tendency} than {other}{where}: {shown}, not settled with {sample}: the interval excludes 0, "
            f"but {p_in_words(row)}."
        )
    enough = needed(row)
    if enough is not None:
        outlook = f"about {enough.count:,} {enough.unit} would settle it"
    elif row.contrast is not None and row.contrast.about == "methods":
        outlook = "both more prompts and more training seeds are needed"
    else:
        outlook = f"not even {MOST:,} prompts would settle it"
    if row.interval.lower == row.interval.upper == 0:
        return f"{row.model} shows no difference to {other}{where}: {shown}, with {sample}."
    return f"{row.model} may be {tendency} than {other}{where}: {shown}, not settled with {sample}; {outlook}."


def amount(row: Row) -> str:
    """Return the difference to the reference model with its interval.

    Raises:
        ValueError: the row has no interval.
    """
    if row.interval is None:
        raise ValueError(f"amount: {row.model} has no difference to a reference model; check row.interval first")
    primary = row.measures[0]
    lower, middle, upper = (
        difference(value, primary.unit) for value in (row.interval.lower, row.interval.difference, row.interval.upper)
    )
    unit = (
        " percentage points of" if primary.unit == FRACTION else "" if primary.unit in (PERCENT, "") else f" {primary.unit} of"
    )
    return f"{middle}{unit} {primary.title} (95 % interval {lower} to {upper})"


def kept_sentence(student: Row, teacher: Row, ratios: Mapping[str, float]) -> str:
    """Return the fraction of the teacher's quality that a student keeps, in words.

    The sentence also has the size, the throughput and the latency of the student, relative to those of the teacher.

    Args:
        student: Scores of the student.
        teacher: Scores of the teacher in the same column.
        ratios: The student's figures divided by those of the teacher in the same run, by the names in `sizes.FIGURES`.
            Unknown figures are missing.
    """
    primary = student.measures[0]
    ours, theirs = student.primary.mean, teacher.primary.mean
    at = [f"{100 * ratios['parameters']:.0f} % of its size"] if "parameters" in ratios else []
    at += [f"{ratios['tokens_per_s']:.1f} times its throughput in batches"] if "tokens_per_s" in ratios else []
    at += [f"{ratios['p50_s']:.2f} times its latency (median of single answers)"] if "p50_s" in ratios else []
    if ours is None or theirs is None:
        kept = f"an unknown fraction of the teacher's quality ({primary.title})"
    elif primary.better == "lower" or theirs <= 0:
        kept = f"{primary.heading} {score(ours, primary.unit)} (teacher: {score(theirs, primary.unit)})"
    else:
        kept = f"{100 * ours / theirs:.0f} % of the teacher's quality ({primary.title})"
    return f"{student.model} has {kept}{' at ' if at else ''}{listed(at)}."


def acceptance_sentences(row: Row) -> list[str]:
    """Return a sentence about the acceptance of a draft model, as a list.

    The list is empty if the acceptance was not measured.

    Args:
        row: Scores of the model.
    """
    accepted, length = row.scores.get("acceptance"), row.scores.get(f"accepted_length_{PROPOSALS}")
    if accepted is None or length is None:
        return []
    return [
        f"As a draft model: the teacher accepts {percent(accepted)} of the tokens that {row.model} proposes, and on average "
        f"{fixed(length)} of {PROPOSALS} proposed tokens."
    ]


def listed(parts: Sequence[str]) -> str:
    """Join phrases with commas, and the last two with "and".

    Example:
        >>> listed(["a", "b", "c"]), listed(["a", "b"]), listed(["a"]), listed([])
        ('a, b and c', 'a and b', 'a', '')
    """
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)


def _sample(row: Row) -> str:
    seeds = row.contrast.num_seeds if row.contrast is not None else 0
    prompts = counted(f"{row.num_prompts:,}", "prompt")
    return f"{prompts} and {seeds} training seeds" if seeds > 1 else prompts


def _rounded_up(number: float) -> int:
    """Round up to two significant digits."""
    scale = int(10 ** max(0, math.floor(math.log10(number)) - 1))
    return math.ceil(number / scale) * scale
