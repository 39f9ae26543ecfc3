"""Curves of a run as SVG.

Text inherits its colour from the page, for light and dark mode. Output is deterministic: it contains no date and no random
ids.  matplotlib is imported when the first curve is plotted.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from redistill.records import FRACTION, Json
from redistill.reports.folders import BEFORE_METRICS_HAD_NAMES, Measure, mapping, number
from redistill.storage.redaction import plain

INK = "#010203"  # placeholder, replaced by currentColor in the SVG
COLOURS = ("#3b82c4", "#d97a2b", "#3f9b6a", "#b0569b", "#8a8f98")
MAX_POINTS = 200
MAX_LABEL = 40
SIZE_INCHES = (4.0, 2.3)

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
    "length_tokens": "Length of responses, tokens",
    "eos_rate": "Responses that end with an end token, fraction",
}
_NOT_METRICS = ("kind", "step", "distinct_1", "distinct_2")
CLIPPING = {"kept_mass": "kept mass", "upper": "u", "lower": "l", "target_only": "target only"}

Series = tuple[str, np.ndarray, np.ndarray]  # name, steps, values


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


def panels(metrics: Sequence[Mapping[str, Json]], validated: Sequence[Measure] = ()) -> list[Panel]:
    """Return the charts of all quantities in the log of a run.

    Args:
        metrics: Lines of metrics.jsonl.
        validated: Metrics that validation may have logged.  If empty, every key in the lines of the validations that is no
            other known quantity is taken as a metric.
    """
    train = [line for line in metrics if line.get("kind") == "train"]
    validation = [line for line in metrics if line.get("kind") == "validation"]
    scores = {measure.name: _title(measure) for measure in validated or _undescribed(validation)}
    charts = []
    for group, lines, titles in (("training", train, TRAINING), ("validation", validation, scores | VALIDATION)):
        found = [_series(lines, name, title) for name, title in titles.items()]
        charts += [Panel(group, series[0], _plot([series])) for series in found if series is not None]
    kept = [series for name, label in CLIPPING.items() if (series := _series(train, name, label)) is not None]
    if kept:
        charts.append(Panel("clipping", "Clipping by DAC-KL, probabilities and fractions", _plot(kept, limits=(0, 1.02))))
    classes = _series(train, "kept_classes", "kept classes")
    if classes is not None:
        log = bool(classes[2].max() > 20 * classes[2].min() > 0)
        charts.append(Panel("clipping", "Classes kept per token", _plot([classes], log=log)))
    origins = _origins(train)
    if origins:
        charts.append(Panel("training", "Origin of sequences, fraction", _plot(origins, limits=(0, 1), stacked=True)))
    return charts


def _undescribed(lines: Sequence[Mapping[str, Json]]) -> Iterator[Measure]:
    """Yield the metrics in the validation log, inferred from the keys of its lines."""
    known = {measure.name: measure for measure in BEFORE_METRICS_HAD_NAMES}
    for name in dict.fromkeys(name for line in lines for name in line):
        if name not in VALIDATION and name not in _NOT_METRICS:
            yield known.get(name) or Measure(name, name, "", "higher")


def _title(measure: Measure) -> str:
    title = f"{measure.title}, fraction" if measure.unit == FRACTION else measure.heading
    return title[:1].upper() + title[1:]


def _series(lines: Sequence[Mapping[str, Json]], name: str, label: str) -> Series | None:
    points = [(number(line.get("step")), number(line.get(name))) for line in lines]
    known = np.array([(step, value) for step, value in points if step is not None and value is not None])
    return (label, known[:, 0], known[:, 1]) if len(known) else None


def _origins(lines: Sequence[Mapping[str, Json]]) -> list[Series]:
    counted = [
        (step, origin)
        for line in lines
        if (origin := mapping(line.get("origin"))) and (step := number(line.get("step"))) is not None
    ]
    names = sorted({name for _, origin in counted for name in origin})
    counts = np.array([[number(origin.get(name)) or 0.0 for name in names] for _, origin in counted])
    if not counts.size:
        return []
    steps = np.array([step for step, _ in counted])
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return [(plain(name)[:MAX_LABEL], steps, fractions[:, column]) for column, name in enumerate(names)]


def _binned(values: np.ndarray) -> list[np.ndarray]:
    return np.array_split(values, min(len(values), MAX_POINTS))


def _plot(
    series: Sequence[Series], *, limits: tuple[float, float] | None = None, log: bool = False, stacked: bool = False
) -> str:
    """Plot series as curves, or as areas if `stacked`, and return the SVG element.

    A series is a tuple (name, steps, values). The y axis has the range `limits`; it is logarithmic if `log` is True.  A long
    series is divided into bins: the line shows the mean of each bin, and the band shows the minimum and maximum of the bin.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    # Keep text as text, and derive the ids of clip paths from the content.
    style: dict[str, object] = {"svg.fonttype": "none", "svg.hashsalt": "redistill", "font.size": 9, "axes.linewidth": 0.6}
    style |= dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    binned = [(name, _means(_binned(steps)), _binned(values)) for name, steps, values in series]
    with matplotlib.style.context(["default", style]):
        figure = Figure(figsize=SIZE_INCHES, layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
        axes.set_xlabel("update")
        if stacked:
            names, fractions = [name for name, _, _ in binned], [_means(parts) for _, _, parts in binned]
            axes.stackplot(binned[0][1], fractions, labels=names, colors=COLOURS, alpha=0.75)
        for (name, steps, parts), colour in zip([] if stacked else binned, COLOURS, strict=False):
            if sum(map(len, parts)) > MAX_POINTS:
                axes.fill_between(steps, list(map(np.min, parts)), list(map(np.max, parts)), color=colour, alpha=0.2, lw=0)
            marker = "o" if len(parts) < 12 else None
            axes.plot(steps, _means(parts), color=colour, lw=1.5, label=name, marker=marker, markersize=3)
        if log:
            axes.set_yscale("log")
        if limits is not None:
            axes.set_ylim(*limits)
        if len(series) > 1 or stacked:
            position = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0}
            for text in axes.legend(frameon=False, fontsize=8, ncols=len(series), **position).get_texts():
                text.set_parse_math(False)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return _inline(out.getvalue())


def _means(parts: Sequence[np.ndarray]) -> list[float]:
    return [float(part.mean()) for part in parts]


def _inline(document: str) -> str:
    """Return the <svg> element of a document, with width and text colour of the page."""
    svg = document[document.index("<svg") :]
    svg = re.sub(r' (?:width|height)="[^"]*"', "", svg, count=2)  # the attributes of <svg>
    svg = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    return svg.replace(INK, "currentColor").strip()
