"""Positions for the labels of the points in a chart."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from redistill.reports.drawing import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GAP = 0.03
"""Horizontal distance of a label from its point."""
_POINT = 0.012  # half of the size of a point's marker
_LETTER_INCHES, _LINE_INCHES = 0.068, 0.16  # mean width of a letter of a label, and height of a label
_FRAME_INCHES = 0.8  # of a chart's width and of its height are outside the axes, for the labels of the axes

Place = tuple[float, float]


class Box(NamedTuple):
    """A rectangle in fractions of the axes.

    Args:
        left, bottom, right, top: Positions of the edges of the rectangle.
    """

    left: float
    bottom: float
    right: float
    top: float

    def overlaps(self, other: "Box") -> bool:
        """Return whether the two rectangles have a common area."""
        return self.left < other.right and other.left < self.right and self.bottom < other.top and other.bottom < self.top


class Label(NamedTuple):
    """The position of a label.

    Args:
        point: The point.
        end: Middle of the left or right edge of the label, whichever is nearer to the point.
        box: The rectangle of the label's text.
    """

    point: Place
    end: Place
    box: Box

    @property
    def is_right(self) -> bool:
        """Whether the label is right of its point."""
        return self.end[0] > self.point[0]

    @property
    def is_moved(self) -> bool:
        """Whether the label is higher or lower than its point, so that a line joins them."""
        return self.end[1] != self.point[1]


def label_positions(points: Sequence[Place], widths: Sequence[float], height: float) -> list[Label]:
    """Return a position for the label of each point.

    A label is beside its point or, if there is no space, as near above or below it as possible.  Labels lie inside the axes.
    They do not overlap other labels or points.  A line joins a label that is above or below to its point.  These lines do not
    cross each other or a label.  If there is no such position, the line may cross others.  If the label would still overlap
    another, it is put beside its point.

    Args:
        points: Horizontal and vertical position of each point, in fractions of the axes.
        widths: Width of each label, in fractions of the axes.
        height: Height of a label, in fractions of the axes.
    """
    marks = [Box(x - _POINT, y - _POINT, x + _POINT, y + _POINT) for x, y in points]
    found: dict[int, Label] = {}
    for index in sorted(range(len(points)), key=lambda each: points[each][::-1]):
        others = [mark for place, mark in zip(points, marks, strict=True) if place != points[index]]
        candidates = list(_candidates(points[index], widths[index], height, len(points)))
        apart = [each for each in candidates if _is_inside(each) and not _is_covered(each, found.values(), others)]
        free = (each for each in apart if not any(crosses(each, label) for label in found.values()))
        found[index] = next(free, apart[0] if apart else candidates[0])
    return [found[index] for index in range(len(points))]


def name_points(axes: "Axes", points: Sequence[Place], names: Sequence[str], size_inches: tuple[float, float]) -> None:
    """Write a label beside each point of a chart.

    A label that is moved is joined to its point by a line.

    Args:
        axes: The axes, with their final scales and limits.
        points: Position of each point on both axes.
        names: The labels, one line each.  They are untrusted: matplotlib's markup for formulas is turned off.
        size_inches: Width and height of the chart.
    """
    axes.autoscale_view()  # sets the limits, from which fractions are computed
    to_fraction = axes.transScale + axes.transLimits  # from data to fractions of the axes
    places = [tuple(map(float, to_fraction.transform(point))) for point in points]
    width, height = (size - _FRAME_INCHES for size in size_inches)
    widths = [_LETTER_INCHES * len(name) / width for name in names]
    labels = label_positions([(x, y) for x, y in places], widths, _LINE_INCHES / height)
    for name, label in zip(names, labels, strict=True):
        line = {"arrowstyle": "-", "color": INK, "alpha": 0.4, "linewidth": 0.6, "relpos": (0 if label.is_right else 1, 0.5)}
        joined = line if label.is_moved else None
        named = axes.annotate(name, label.point, label.end, "axes fraction", "axes fraction", joined, fontsize=8)
        named.set_in_layout(False)
        named.set(horizontalalignment="left" if label.is_right else "right", verticalalignment="center")
        named.set_parse_math(False)


def crosses(first: Label, second: Label) -> bool:
    """Return whether the line of one label crosses the line or the text of the other."""
    lines = _intersect((first.point, first.end), (second.point, second.end)) if first.is_moved and second.is_moved else False
    return lines or _hits(first, second.box) or _hits(second, first.box)


def _candidates(point: Place, width: float, height: float, count: int) -> Iterator[Label]:
    """Yield positions for a label, from near to far."""
    x, y = point
    sides = (1, -1) if x + GAP + width <= 1 else (-1, 1)
    steps = [0, *itertools.chain.from_iterable((step, -step) for step in range(1, 2 * count + 1))]
    for step, gap, side in itertools.product(steps, (GAP, 3 * GAP), sides):
        end = (x + side * (gap if step else GAP), y + step * height / 2)
        box = Box(
            min(end[0], end[0] + side * width), end[1] - height / 2, max(end[0], end[0] + side * width), end[1] + height / 2
        )
        yield Label(point, end, box)


def _is_inside(label: Label) -> bool:
    """Return whether a label is inside the axes.

    A label beside its point may extend above or below the axes.
    """
    box = label.box
    return box.left >= 0 and box.right <= 1 and (not label.is_moved or (box.bottom >= 0 and box.top <= 1))


def _is_covered(label: Label, labels: Iterable[Label], marks: Sequence[Box]) -> bool:
    """Return whether the text of a label overlaps another label or a point."""
    return any(label.box.overlaps(box) for box in (*marks, *(each.box for each in labels)))


def _hits(label: Label, box: Box) -> bool:
    """Return whether the line of a label crosses a rectangle."""
    corners = ((box.left, box.bottom), (box.right, box.bottom), (box.right, box.top), (box.left, box.top))
    sides = zip(corners, corners[1:] + corners[:1], strict=True)
    return label.is_moved and any(_intersect((label.point, label.end), side) for side in sides)


def _intersect(one: tuple[Place, Place], other: tuple[Place, Place]) -> bool:
    """Return whether two line segments cross."""

    def side(a: Place, b: Place, c: Place) -> float:
        return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])

    (a, b), (c, d) = one, other
    return side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0
