"""Curves of a run as SVG."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from redistill.records import ACCEPTANCE, FRACTION, PROPOSALS
from redistill.reports.drawing import COLOURS, INK, drawn, legend_above
from redistill.reports.folders import BEFORE_METRICS_HAD_NAMES, Measure
from redistill.reports.logs import RunLog
from redistill.reports.thinning import Bins, Curve
from redistill.storage.redaction import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_LABEL = 40
LEGEND_CHARACTERS = 32  # maximum length of all labels together for a legend in one row

TRAINING = {
    "loss": "Loss, weighted sum of its terms",
    "sft": "Cross entropy of answers, nats per token",
    "divergence": "Divergence from the teacher, nats per token",
    "span": "Span loss",
    "policy_gradient": "Policy gradient loss",
    "ratio": "Importance ratio of roll-out tokens, student over sampling policy",
    "clipped": "Roll-out tokens that were clipped, fraction",
    "pretraining": "Cross entropy of plain text, nats per token",
    "pretraining_kl": "KL on plain text, nats per token",
    "grad_norm": "Gradient norm before clipping",
    "learning_rate": "Learning rate",
    "response_length": "Length of sampled responses, tokens",
    "tokens_per_s": "Target tokens per second",
}
VALIDATION = {
    "cross_entropy": "Cross entropy, nats per token",
    "kl": "KL(teacher, student), nats per token",
    "agreement": "Same top token as the teacher, fraction",
    "student_entropy": "Entropy of the student, nats per token",
    "teacher_entropy": "Entropy of the teacher, nats per token",
    "top_overlap": "Common classes of the 10 most probable of both models, fraction",
    "ece": "Expected calibration error of the student",
    "acceptance": "Tokens of the student that the teacher accepts, fraction",
    f"accepted_length_{PROPOSALS}": f"Accepted tokens of {PROPOSALS} proposed ones, expected",
    "length_tokens": "Length of responses, tokens",
    "eos_rate": "Responses that end with an end token, fraction",
}
_NOT_METRICS = ("kind", "step", "distinct_1", "distinct_2", *ACCEPTANCE)
CLIPPING = {"kept_mass": "kept mass", "recovered": "recovered", "target_only": "target only"}
BOUNDS = {"upper": "u", "lower": "l"}

KEPT_CLASSES = "kept_classes"
MASSES = ("kept_mass", "top_mass", "dropped_above")  # inputs of `_mass_parts`
KEPT_TOP_MASS = "kept_top_mass"  # further input of `_mass_parts`; only in logs of runs that may drop the arg max
TRAINING_NAMES = (*TRAINING, *dict.fromkeys((*CLIPPING, *BOUNDS, *MASSES)), KEPT_CLASSES, KEPT_TOP_MASS)
"""Names of the training metrics that have a chart."""


@dataclass(frozen=True)
class Panel:
    """One chart.

    Args:
        group: "training", "validation" or "clipping".
        title: Plotted quantity with its unit.
        svg: The <svg> element.
    """

    group: str
    title: str
    svg: Markup


def panels(log: RunLog, validated: Sequence[Measure] = (), baseline: tuple[str, str, RunLog] | None = None) -> list[Panel]:
    """Return the charts of all quantities in the log of a run.

    Args:
        log: The log, as `read_log` returns it for the names `TRAINING_NAMES`.
        validated: Metrics that validation may have logged; if empty, they are inferred from the log.
        baseline: Labels of the run and of the baseline, and the log of the baseline.  The baseline's curves are dashed lines in
            the same charts.  Its stacked areas are separate charts.
    """
    own, other, theirs = baseline or ("", "", RunLog())
    scores = {measure.name: _title(measure) for measure in validated or _undescribed(log.validation)}
    charts = []
    groups = (
        ("training", log.train, theirs.train, TRAINING),
        ("validation", log.validation, theirs.validation, scores | VALIDATION),
    )
    for group, curves, others, titles in groups:
        for name in (name for name in titles if name in curves):
            dashed = [(plain(other)[:MAX_LABEL], others[name].bins())] if name in others else []
            binned = [(plain(own)[:MAX_LABEL] if dashed else titles[name], curves[name].bins())]
            charts.append(Panel(group, titles[name], _plot(titles[name], binned, dashed)))
    charts += _clipping(log.train, theirs.train, other)
    for origins, suffix in ((log.origins, ""), (theirs.origins, f", {plain(other)[:MAX_LABEL]}")):
        if origins:
            named = [(plain(name)[:MAX_LABEL], origins[name].bins()) for name in sorted(origins)]
            title = f"Origin of sequences, fraction{suffix}"
            charts.append(Panel("training", title, _plot(title, named, limits=(0, 1), stacked=True)))
    return charts


def _clipping(train: Mapping[str, Curve], theirs: Mapping[str, Curve], other: str) -> list[Panel]:
    """Return the charts of the window of DAC-KL, with the curves of the baseline `other`."""
    charts, other = [], plain(other)[:MAX_LABEL]

    def curves(names: Mapping[str, str]) -> tuple[list[tuple[str, Bins]], list[tuple[str, Bins]]]:
        own = [(label, train[name].bins()) for name, label in names.items() if name in train]
        return own, [(f"{label}, {other}", theirs[name].bins()) for name, label in names.items() if name in theirs]

    for title, names, limits in (
        ("Mass that DAC-KL keeps, fraction", CLIPPING, (0, 1.02)),
        ("Bounds u and l of the kept probabilities", BOUNDS, None),
        ("Classes kept per token", {KEPT_CLASSES: "kept classes"}, None),
    ):
        own, dashed = curves(names)
        if own:
            lows, highs = ([float(find(bins)) for _, bins in (*own, *dashed)] for find in (_lowest, _highest))
            is_wide = names is BOUNDS or max(highs) > 20 * min(lows)
            logarithmic = limits is None and min(lows) > 0 and is_wide
            charts.append(Panel("clipping", title, _plot(title, own, dashed, limits=limits, log=logarithmic)))
    for curves_of, suffix in ((train, ""), (theirs, f", {other}")):
        if parts := _mass_parts(curves_of):
            title = f"Kept and whole distribution of the teacher, probability mass{suffix}"
            charts.append(Panel("clipping", title, _plot(title, parts, limits=(0, 1), stacked=True)))
    return charts


def _lowest(bins: Bins) -> float:
    return float(bins.lows.min())


def _highest(bins: Bins) -> float:
    return float(bins.highs.max())


def _mass_parts(train: Mapping[str, Curve]) -> list[tuple[str, Bins]]:
    """Return four parts of the teacher's probability mass, which sum to 1.

    The parts are "arg max" and "other kept" (the other classes that DAC-KL keeps), "dropped above" and "dropped below".
    "dropped above" are dropped classes that are more probable than some kept class.  It is 0 if the most probable classes are
    kept. "dropped below" are all other dropped classes.  Fig. 5 of MGSR (arXiv 2407.10068) compares the kept classes with all
    classes, but does not show them over updates.  If the arg max is not always kept, the first part is "arg max where kept".
    The result is empty if a metric is missing.
    """
    names = ("kept_mass", KEPT_TOP_MASS if KEPT_TOP_MASS in train else "top_mass", "dropped_above")
    if any(name not in train for name in names):
        return []
    kept, top, above = (train[name].bins() for name in names)
    if not (np.array_equal(kept.steps, top.steps) and np.array_equal(kept.steps, above.steps)):
        return []
    if (kept.means < top.means - 1e-6).any():  # an earlier version, which did not record how much of the arg max is kept
        return []
    parts = {
        "arg max where kept" if KEPT_TOP_MASS in train else "arg max": top.means,
        "other kept": kept.means - top.means,
        "dropped above": above.means,
        "dropped below": 1 - kept.means - above.means,
    }
    return [(label, kept._replace(means=np.clip(means, 0, 1))) for label, means in parts.items()]


def _undescribed(names: Iterable[str]) -> Iterator[Measure]:
    """Yield a metric for each validation curve of a log that lists no metrics.

    `names` are the names of the curves.
    """
    known = {measure.name: measure for measure in BEFORE_METRICS_HAD_NAMES}
    for name in names:
        if name not in VALIDATION and name not in _NOT_METRICS:
            yield known.get(name) or Measure(name, name, "", "higher")


def _title(measure: Measure) -> str:
    title = f"{measure.title}, fraction" if measure.unit == FRACTION else measure.heading
    return title[:1].upper() + title[1:]


def _plot(
    title: str,
    binned: Sequence[tuple[str, Bins]],
    dashed: Sequence[tuple[str, Bins]] = (),
    *,
    limits: tuple[float, float] | None = None,
    log: bool = False,
    stacked: bool = False,
) -> Markup:
    """Plot curves, given as labelled bins, and return the <svg> element.

    A line shows the mean of each bin; a band around it shows the minimum and the maximum.  If `stacked` is True, the means are
    plotted as stacked areas instead.

    `dashed` are curves of a baseline, plotted without bands.  If the run has several curves, each dashed curve has the colour
    of the corresponding curve of the run.  `limits` are the ends of the vertical axis.  The axis is logarithmic if `log` is
    True.
    """

    def paint(axes: "Axes") -> None:
        axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
        axes.set_xlabel("update")
        if stacked:
            names, fractions = [label for label, _ in binned], [bins.means for _, bins in binned]
            axes.stackplot(binned[0][1].steps, fractions, labels=names, colors=COLOURS, alpha=0.75)
        for (label, bins), colour in zip([] if stacked else binned, COLOURS, strict=False):
            if bins.counts.max() > 1:
                axes.fill_between(bins.steps, bins.lows, bins.highs, color=colour, alpha=0.2, lw=0)
            axes.plot(bins.steps, bins.means, color=colour, lw=1.5, label=label, marker=_marker(bins), markersize=3)
        for (label, bins), colour in zip(dashed, COLOURS if len(binned) > 1 else COLOURS[1:], strict=False):
            marker = _marker(bins)
            axes.plot(bins.steps, bins.means, "--", color=colour, lw=1.2, label=label, marker=marker, markersize=3)
        if log:
            axes.set_yscale("log")
        if limits is not None:
            axes.set_ylim(*limits)
        if len(binned) + len(dashed) > 1 or stacked:
            labels = [label for label, _ in (*binned, *dashed)]
            columns = len(labels) if sum(map(len, labels)) <= LEGEND_CHARACTERS else 2
            legend_above(axes, columns)

    return drawn(paint, f"{title}, by update")


def _marker(bins: Bins) -> str | None:
    """Return the marker for the points of a short curve; None for a longer curve.

    A curve of a single point is visible only with a marker.
    """
    return "o" if len(bins.steps) < 12 else None
