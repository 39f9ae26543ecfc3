"""Curves of a run as SVG.

Text inherits its colour from the page, for light and dark mode. Output is deterministic: it contains no date and no random
ids.  matplotlib is imported when the first curve is plotted.
"""

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from redistill.records import ACCEPTANCE, FRACTION, PROPOSALS
from redistill.reports.folders import BEFORE_METRICS_HAD_NAMES, Measure
from redistill.reports.logs import RunLog
from redistill.reports.thinning import Bins, Curve
from redistill.storage.redaction import plain

INK = "#010203"  # placeholder, replaced by currentColor in the SVG
COLOURS = ("#3b82c4", "#d97a2b", "#3f9b6a", "#b0569b", "#8a8f98")
MAX_LABEL = 40
SIZE_INCHES = (4.0, 2.3)
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
CLIPPING = {"kept_mass": "kept mass", "recovered": "recovered", "upper": "u", "lower": "l", "target_only": "target only"}

KEPT_CLASSES = "kept_classes"
MASSES = ("kept_mass", "top_mass", "dropped_above")  # inputs of `_mass_parts`
TRAINING_NAMES = (*TRAINING, *dict.fromkeys((*CLIPPING, *MASSES)), KEPT_CLASSES)
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
    svg: str


def panels(log: RunLog, validated: Sequence[Measure] = ()) -> list[Panel]:
    """Return the charts of all quantities in the log of a run.

    Args:
        log: The log, as `read_log` returns it for the names `TRAINING_NAMES`.
        validated: Metrics that validation may have logged; if empty, they are inferred from the log.
    """
    scores = {measure.name: _title(measure) for measure in validated or _undescribed(log.validation)}
    charts = []
    for group, curves, titles in (("training", log.train, TRAINING), ("validation", log.validation, scores | VALIDATION)):
        charts += [
            Panel(group, title, _plot([(title, curves[name].bins())])) for name, title in titles.items() if name in curves
        ]
    kept = [(label, log.train[name].bins()) for name, label in CLIPPING.items() if name in log.train]
    if kept:
        charts.append(Panel("clipping", "Clipping by DAC-KL, probabilities and fractions", _plot(kept, limits=(0, 1.02))))
    if parts := _mass_parts(log.train):
        title = "Kept and whole distribution of the teacher, probability mass"
        charts.append(Panel("clipping", title, _plot(parts, limits=(0, 1), stacked=True)))
    if KEPT_CLASSES in log.train:
        bins = log.train[KEPT_CLASSES].bins()
        logarithmic = bool(bins.highs.max() > 20 * bins.lows.min() > 0)
        classes = [("kept classes", bins)]
        charts.append(Panel("clipping", "Classes kept per token", _plot(classes, log=logarithmic)))
    if log.origins:
        origins = [(plain(name)[:MAX_LABEL], log.origins[name].bins()) for name in sorted(log.origins)]
        charts.append(Panel("training", "Origin of sequences, fraction", _plot(origins, limits=(0, 1), stacked=True)))
    return charts


def _mass_parts(train: Mapping[str, Curve]) -> list[tuple[str, Bins]]:
    """Return four parts of the teacher's probability mass, which sum to 1.

    The parts are the arg max, the other classes that DAC-KL keeps, dropped classes that are more probable than a kept one
    ("dropped above"), and the other dropped classes ("dropped below").  If the most probable classes are kept, "dropped above"
    is 0.  Fig. 5 of MGSR (arXiv 2407.10068) compares the kept with the whole distribution, too; here it is shown over updates.
    The result is empty if a metric is missing, or if the arg max is not always kept.
    """
    if any(name not in train for name in MASSES):
        return []
    kept, top, above = (train[name].bins() for name in MASSES)
    if not (np.array_equal(kept.steps, top.steps) and np.array_equal(kept.steps, above.steps)):
        return []
    if (kept.means < top.means - 1e-6).any():
        return []
    parts = {
        "arg max": top.means,
        "other kept": kept.means - top.means,
        "dropped above": above.means,
        "dropped below": 1 - kept.means - above.means,
    }
    return [(label, kept._replace(means=np.clip(means, 0, 1))) for label, means in parts.items()]


def _undescribed(names: Iterable[str]) -> Iterator[Measure]:
    """Yield metrics for the validation curves of a log that describes no metrics.

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
    binned: Sequence[tuple[str, Bins]], *, limits: tuple[float, float] | None = None, log: bool = False, stacked: bool = False
) -> str:
    """Plot curves, and return the <svg> element.

    `binned` has the bins of each curve with its label.

    A line shows the mean of each bin of a curve; a band around it shows the minimum and the maximum.  If `stacked` is True, the
    means are plotted as stacked areas instead.  `limits` are the ends of the vertical axis; the axis is logarithmic if `log` is
    True.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    # Keep text as text, and derive the ids of clip paths from the content.
    style: dict[str, object] = {"svg.fonttype": "none", "svg.hashsalt": "redistill", "font.size": 9, "axes.linewidth": 0.6}
    style |= dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    with matplotlib.style.context(["default", style]):
        figure = Figure(figsize=SIZE_INCHES, layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
        axes.set_xlabel("update")
        if stacked:
            names, fractions = [label for label, _ in binned], [bins.means for _, bins in binned]
            axes.stackplot(binned[0][1].steps, fractions, labels=names, colors=COLOURS, alpha=0.75)
        for (label, bins), colour in zip([] if stacked else binned, COLOURS, strict=False):
            if bins.counts.max() > 1:
                axes.fill_between(bins.steps, bins.lows, bins.highs, color=colour, alpha=0.2, lw=0)
            marker = "o" if len(bins.steps) < 12 else None
            axes.plot(bins.steps, bins.means, color=colour, lw=1.5, label=label, marker=marker, markersize=3)
        if log:
            axes.set_yscale("log")
        if limits is not None:
            axes.set_ylim(*limits)
        if len(binned) > 1 or stacked:
            columns = len(binned) if sum(len(label) for label, _ in binned) <= LEGEND_CHARACTERS else 2
            position = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0}
            for text in axes.legend(frameon=False, fontsize=8, ncols=columns, **position).get_texts():
                text.set_parse_math(False)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return _inline(out.getvalue())


def _inline(document: str) -> str:
    """Return the <svg> element of a document, without its size and text colour.

    The page sets the size and the text colour.
    """
    svg = document[document.index("<svg") :]
    svg = re.sub(r' (?:width|height)="[^"]*"', "", svg, count=2)  # the attributes of <svg>
    svg = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    return svg.replace(INK, "currentColor").strip()
