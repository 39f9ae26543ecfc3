"""The section "Window of DAC-KL" of a report.

For a few tokens, it shows the probabilities of all classes and the classes that DAC-KL keeps, as Fig. 5 of MGSR (arXiv
2407.10068) does.  The data are read from windows.jsonl, whose texts and numbers are untrusted.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from redistill.records import Json
from redistill.reports.drawing import COLOURS, INK, drawn, legend_above
from redistill.reports.folders import RunFolder, log_lines, number
from redistill.reports.tables import Cell, Line, Table
from redistill.storage.redaction import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FILE = "windows.jsonl"
MAX_WINDOWS = 8
MAX_CLASSES = 200
NUM_LISTED = 20
"""Number of classes in the table of a window."""
MAX_CONTEXT = 300
"""Number of characters of the text before the token, from its end."""
LEAST = 1e-12
"""Smaller probabilities are drawn at this height."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A window as the report shows it.

    Args:
        title: Training example and token.
        context: The end of the text before the token.
        target: The token of the gold answer.
        sentence: The ends of the window, and the classes and the probability mass that it keeps.
        svg: Probabilities of both models by rank of the class, with the kept classes marked.
        table: Probabilities of the most probable classes.
    """

    title: str
    context: str
    target: str
    sentence: str
    svg: Markup
    table: Table


@dataclass(frozen=True)
class _Class:
    text: str
    rank: float
    teacher: float
    student: float
    is_kept: bool


def windows_section(run: RunFolder) -> list[Shown]:
    """Return the recorded windows of a run; [] if it has recorded none.

    Raises:
        CheckpointError: the file is damaged.
    """
    found = (_shown(line) for line, _ in zip(log_lines(run.path / FILE), range(MAX_WINDOWS)))
    return [window for window in found if window is not None]


def _shown(line: Mapping[str, Json]) -> Shown | None:
    """Return the window in a line of windows.jsonl.

    The result is None if a required number is missing.
    """
    names = ("lower", "upper", "kept_classes", "kept_mass", "recovered", "divergence")
    values = {name: value for name in names if (value := number(line.get(name))) is not None}
    classes = list(_classes(line.get("classes")))
    if len(values) < len(names) or not classes:
        return None
    top = classes[0]
    if top.rank == 1 and not top.is_kept and top.teacher < 1:
        values["recovered"] = values["kept_mass"] / (1 - top.teacher)  # an earlier version assumed that the arg max is kept
    title = f"Training example {line.get('row')}, token {line.get('position')} of the answer"
    return Shown(
        title=title,
        context=plain(str(line.get("context") or ""))[-MAX_CONTEXT:],
        target=str(line.get("target") or ""),
        sentence=f"The window from l = {values['lower']:.4g} to u = {values['upper']:.4g} keeps {values['kept_classes']:,.0f} "
        f"classes with {100 * values['kept_mass']:.1f} % of the teacher's probability mass, and "
        f"{100 * values['recovered']:.1f} % of its mass outside the arg max. DAC-KL is {values['divergence']:.4f} nats here.",
        svg=drawn(_paint(classes, line.get("mode"), values), f"{title}: probabilities by rank; the table has the numbers"),
        table=_table(title, classes),
    )


def _classes(listed: Json) -> Iterator[_Class]:
    """Yield the classes in a line of windows.jsonl.

    The teacher's most probable class is first.  Classes with missing numbers are left out.
    """
    for found in listed[:MAX_CLASSES] if isinstance(listed, list) else ():
        if isinstance(found, dict):
            rank, teacher, student = (number(found.get(name)) for name in ("rank", "teacher", "student"))
            if rank is not None and rank >= 1 and teacher is not None and student is not None:
                yield _Class(str(found.get("text") or ""), rank, teacher, student, found.get("is_kept") is True)


def _paint(classes: Sequence[_Class], mode: Json, values: Mapping[str, float]) -> Callable[["Axes"], None]:
    def paint(axes: "Axes") -> None:
        axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
        ranks = [each.rank for each in classes]
        for name, colour, style in (("teacher", COLOURS[0], "-"), ("student", COLOURS[1], "--")):
            heights = [max(float(getattr(each, name)), LEAST) for each in classes]
            axes.plot(ranks, heights, color=colour, linestyle=style, linewidth=1.2, label=name)
        kept = [each for each in classes if each.is_kept]
        places = ([each.rank for each in kept], [max(each.teacher, LEAST) for each in kept])
        axes.scatter(*places, color=COLOURS[0], s=12, zorder=3, label="kept")
        if mode == "value":  # in other modes, the bounds are not probabilities
            for bound, letter, side in (("lower", "l", "top"), ("upper", "u", "bottom")):
                if values[bound] > LEAST:
                    axes.axhline(values[bound], color=COLOURS[2], linewidth=0.9, linestyle=":")
                    place = (1.0, values[bound])
                    axes.annotate(
                        letter, place, (3, 0), ("axes fraction", "data"), "offset points", fontsize=9, verticalalignment=side
                    )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("rank by the teacher's probability")
        axes.set_ylabel("probability")
        legend_above(axes, 3)

    return paint


def _table(title: str, classes: Sequence[_Class]) -> Table:
    return Table(
        key="window",
        title=f"Classes, {title}",
        caption=f"The {min(NUM_LISTED, len(classes))} most probable of the {len(classes)} recorded classes.",
        columns=["Token", "rank", "teacher", "student", "kept"],
        lines=[
            Line(each.text or "∅", "method", [Cell(text) for text in (f"{each.rank:.0f}", *_probabilities(each), _word(each))])
            for each in classes[:NUM_LISTED]
        ],
    )


def _probabilities(found: _Class) -> tuple[str, str]:
    return f"{found.teacher:.4g}", f"{found.student:.4g}"


def _word(found: _Class) -> str:
    return "yes" if found.is_kept else "no"
