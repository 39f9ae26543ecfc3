"""Quality, size, speed and memory of the models of a report."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup

from redistill.records import FRACTION, Json
from redistill.reports.comparison import METHOD_ROLES, Row
from redistill.reports.drawing import COLOURS, INK, drawn
from redistill.reports.folders import Evaluation, RunFolder, at, mapping, number
from redistill.reports.labels import name_points
from redistill.reports.pages import NOTHING, fixed, large, percent, score
from redistill.reports.tables import Cell, Line, Table
from redistill.storage.redaction import plain_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIGURES = {
    "parameters": ("parameters",),
    "bytes": ("bytes",),
    "tokens_per_s": ("tokens_per_s",),
    "p50_s": ("latency", "p50_s"),
    "p95_s": ("latency", "p95_s"),
    "first_token_p50_s": ("latency", "first_token_p50_s"),
    "first_token_p95_s": ("latency", "first_token_p95_s"),
    "peak_bytes": ("peak_bytes",),
}
"""Name of each figure, with the path of its key in scores.json."""
RECORDED = {"parameters", "bytes", "tokens_per_s"}
"""Figures that run.json may have for the teacher and the student; scores.json takes precedence."""
OF_MACHINE = FIGURES.keys() - {"parameters", "bytes"}
"""Figures that depend on the machine and on its other work, so that they are comparable within a run only."""
COLUMNS = (
    *("parameters", "size", "tokens/s", "latency p50, s", "latency p95, s"),
    *("first token p50, s", "first token p95, s", "peak memory"),
)
"""Headings of the figures in tables, in the order of `FIGURES`."""
EXPLAINED = (
    "Tokens per second are the throughput of the evaluation in batches. The latency is the time of an answer that is generated "
    "alone, and p50 and p95 are its percentiles over prompts; the first token has a latency of its own. Figures of speed and "
    "memory depend on the machine. In parentheses: the figure divided by that of the teacher in the same run. If that teacher "
    "has no row here, its figure follows after 'of'."
)
"""Part of the caption of a table with these columns."""
PICTURE_INCHES = (5.2, 3.4)
"""Width and height of the chart of quality by size."""
_MAX_LABEL = 30

Figures = dict[str, float]


def figures_of(model: Evaluation, run: RunFolder) -> Figures:
    """Return size, speed and memory of a model.

    The keys are names in `FIGURES`.  Unknown values are missing.

    Args:
        model: The evaluation of the model.
        run: The run of the report.  Its run.json is used if the model is the teacher or the student of this run.
    """
    role = model.role if model.role in ("teacher", "student") else ""
    recorded = at(run.description, "models", role)
    found = {name: number(at(recorded, name)) for name in RECORDED}
    return {name: value for name, value in found.items() if value is not None and value > 0} | measured_figures(model)


def measured_figures(model: Evaluation) -> Figures:
    """Return size, speed and memory of a model, as measured by its evaluation.

    The keys are names in `FIGURES`.  Values that are missing in scores.json are missing in the result.
    """
    found = {name: number(at(model.scores, *path)) for name, path in FIGURES.items()}
    return {name: value for name, value in found.items() if value is not None and value > 0}


def model_sizes(run: RunFolder) -> dict[str, dict[str, object]]:
    """Return name, description, size, speed and memory of "teacher" and "student".

    A value that the evaluation measured takes precedence over the value in run.json.
    """
    sizes: dict[str, dict[str, object]] = {}
    for role, evaluation in (("teacher", run.teacher), ("student", run.student)):
        recorded = mapping(at(run.description, "models", role))
        measured: Mapping[str, Json] = {} if evaluation is None else evaluation.scores
        if recorded or measured:
            held = evaluation or Evaluation(label=role, role=role, scores={}, answers={})
            name = str(recorded.get("name") or measured.get("model") or role)
            sizes[role] = {"name": name, "description": _description(role, name, run), **figures_of(held, run)}
    return sizes


def _description(role: str, name: str, run: RunFolder) -> str:
    """Return a description of the student that was initialised from the teacher.

    For any other model, the result is its name.
    """
    config = at(run.description, "config", "student")
    if role != "student" or at(config, "model") != "teacher":
        return name
    layers = at(config, "initialise", "layers")
    if isinstance(layers, list):
        return f"initialised from the teacher ({'layer' if len(layers) == 1 else 'layers'} {', '.join(map(str, layers))})"
    return "initialised from the teacher" + ("" if layers is None else f" ({layers} of its layers)")


def ratios(run: RunFolder) -> Figures:
    """Return size, speed and memory of the student divided by those of the teacher.

    The keys are names in `FIGURES`.  Both models were measured by the same run.  Speed, latency and memory depend on the
    machine and on its other work.  Therefore, the student of one run is never divided by the teacher of another run.
    """
    sizes = model_sizes(run)
    ours, theirs = ({name: number(value) for name, value in sizes.get(role, {}).items()} for role in ("student", "teacher"))
    pairs = {name: (ours.get(name), theirs.get(name)) for name in FIGURES}
    return {name: own / other for name, (own, other) in pairs.items() if own is not None and other}


def teacher_figures(run: RunFolder) -> Figures:
    """Return size, speed and memory of the teacher of a run.

    The keys are names in `FIGURES`.  Unknown values are missing.
    """
    held = model_sizes(run).get("teacher", {})
    return {name: value for name in FIGURES if (value := number(held.get(name))) is not None}


def relative_figures(runs: Sequence[RunFolder], models: Sequence[Evaluation]) -> dict[str, Figures]:
    """Return size, speed and memory of each model, relative to the teacher of its run.

    The keys of the result are the labels of the models.  Each value maps names in `FIGURES` to ratios.  The teacher has no
    entry.

    Args:
        runs: The run of the report, followed by its baselines.
        models: The evaluations, as `comparison.evaluations` returns them for these runs.
    """
    run, *baselines = runs
    teacher = {} if run.teacher is None else figures_of(run.teacher, run)
    own = {"student": ratios(run)}
    if run.before is not None:
        own["before"] = {name: value / teacher[name] for name, value in figures_of(run.before, run).items() if name in teacher}
    others = iter([ratios(baseline) for baseline in baselines if baseline.student is not None])
    return {
        model.label: next(others) if model.role == "baseline" else own[model.role]
        for model in models
        if model.role != "teacher"
    }


def size_table(runs: Sequence[RunFolder], models: Sequence[Evaluation], rows: Sequence[Row]) -> Table:
    """Build the table of quality, size, speed, latency and memory of each model.

    Args:
        runs: The run of the report, followed by its baselines.
        models: The evaluations, as `comparison.evaluations` returns them for these runs.
        rows: Scores with one primary metric, one row per model, averaged over data sets.
    """
    relative = relative_figures(runs, models)
    primary = rows[0].measures[0]
    scores = {(row.role, row.model): row.primary.mean for row in rows}
    teacher = next((value for (role, _), value in scores.items() if role == "teacher"), None)
    drafts = {(row.role, row.model): value for row in rows if (value := row.scores.get("acceptance")) is not None}
    own_teachers = iter([teacher_figures(baseline) for baseline in runs[1:] if baseline.student is not None])
    lines = []
    for model in models:
        own = scores.get((model.role, model.label))
        kept = own / teacher if own is not None and teacher and teacher > 0 and primary.sign > 0 else None
        ratios_of = {} if model.role == "teacher" else relative[model.label]
        teacher_of = next(own_teachers) if model.role == "baseline" else {}
        cells = [Cell(score(own, primary.unit)), Cell(percent(kept))]
        cells += figure_cells(figures_of(model, runs[0]), ratios_of, teacher_of)
        cells += [Cell(percent(drafts.get((model.role, model.label))))] if drafts else []
        lines.append(Line(model.label, "method" if model.role in METHOD_ROLES else "reference", cells))
    return Table(
        key="size",
        title="Size and speed",
        caption=f"{primary.title} ({rows[0].column}), and its fraction of the teacher's score. {EXPLAINED} Peak memory "
        "is that of the weights and of one answer at a time."
        + (" Acceptance is the probability that the teacher accepts a token that the model proposes." if drafts else ""),
        columns=["", primary.heading, "of the teacher", *COLUMNS, *(["acceptance"] if drafts else [])],
        lines=lines,
    )


def quality_picture(run: RunFolder, models: Sequence[Evaluation], rows: Sequence[Row]) -> Markup | None:
    """Draw quality against size; return None for fewer than two models.

    The quality is in percent of the teacher's score.  It is the score itself if the teacher has no positive score, or if lower
    scores are better.

    Args:
        run: The run of the report.
        models: The evaluations.
        rows: Scores with one primary metric, one row per model, averaged over data sets.
    """
    primary = rows[0].measures[0]
    scores = {(row.role, row.model): row.primary.mean for row in rows}
    points = list(_points(run, models, scores))
    if len(points) < 2:
        return None
    teacher = next((quality for _, role, _, quality in points if role == "teacher"), 0.0)
    is_relative = teacher > 0 and primary.sign > 0
    times = 100 / teacher if is_relative else 100 if primary.unit == FRACTION else 1
    heading = f"{primary.title}, % of the teacher" if is_relative else primary.heading
    places = [(size, times * quality) for _, _, size, quality in points]

    def paint(axes: "Axes") -> None:
        axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
        for (_, role, *_), (size, quality) in zip(points, places, strict=True):
            colour = {"teacher": INK, "student": COLOURS[0]}.get(role, COLOURS[4])
            axes.scatter([size], [quality], color=colour, s=34, zorder=3)
        if primary.sign > 0:
            axes.set_ylim(0, 1.1 * max(quality for _, quality in places))
        _size_axis(axes, [size for size, _ in places])
        axes.set_ylabel(f"{heading}, %" if primary.unit == FRACTION and not is_relative else heading).set_parse_math(False)
        name_points(axes, places, [label for label, *_ in points], PICTURE_INCHES)

    label = f"{heading}, of {len(points)} models by number of parameters; the table of size and speed has the numbers"
    return drawn(paint, label, PICTURE_INCHES)


def _size_axis(axes: "Axes", sizes: Sequence[float]) -> None:
    """Set a logarithmic axis of numbers of parameters, with ticks at 1, 2 and 5 times the powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.set_xlim(min(sizes) / 2, max(sizes) * 2)
    is_narrow = max(sizes) < 30 * min(sizes)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if is_narrow else (1,)))
    axes.xaxis.set_major_formatter(lambda value, _: large(value))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("parameters")


def figure_cells(figures: Figures, relative: Figures, teacher: Figures | None = None) -> Iterator[Cell]:
    """Yield a table cell for each figure (size, speed, memory) in `FIGURES`.

    The text of an unknown figure is a dash.

    Args:
        figures: Figures of a model by name.
        relative: Figures of the model divided by those of the teacher in the same run, by name.
        teacher: Figures of the teacher in the same run, if the table has no row for this teacher.  Figures that depend on the
            machine are then followed by the figure of the teacher.

    Example:
        >>> [cell.text for cell in figure_cells({"parameters": 1.2e8, "bytes": 2.4e8, "p50_s": 0.25}, {})][:4]
        ['120 M', '240 MB', '–', '0.250']
        >>> [cell.detail for cell in figure_cells({"parameters": 1.2e8, "p50_s": 0.25}, {"p50_s": 0.5})][:4]
        ['', '', '', '(0.50×)']
        >>> [cell.detail for cell in figure_cells({"p50_s": 0.25}, {"p50_s": 0.5}, {"p50_s": 0.5})][3]
        '(0.50× of 0.500)'
    """
    of_teacher = {name: value for name, value in (teacher or {}).items() if name in OF_MACHINE}
    for name in FIGURES:
        ratio = relative.get(name) if name in figures else None
        versus = f" of {_shown(name, of_teacher[name])}" if name in of_teacher else ""
        yield Cell(_shown(name, figures.get(name)), "" if ratio is None else f"({ratio:.2f}×{versus})")


def _shown(name: str, value: float | None) -> str:
    """Format the value of the figure `name` in `FIGURES`; a dash for None."""
    if value is None:
        return NOTHING
    if name.endswith("bytes"):
        return f"{large(value, 'G')}B"
    return fixed(value, 3) if "latency" in FIGURES[name] else large(value)


def _points(
    run: RunFolder, models: Sequence[Evaluation], scores: Mapping[tuple[str, str], float | None]
) -> Iterator[tuple[str, str, float, float]]:
    """Yield label, role, size and quality of each model for which all are known."""
    for model in models:
        size, quality = figures_of(model, run).get("parameters"), scores.get((model.role, model.label))
        if size is not None and quality is not None:
            yield plain_line(model.label)[:_MAX_LABEL], model.role, size, quality
