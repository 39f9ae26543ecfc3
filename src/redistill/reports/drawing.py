"""Draws a figure with matplotlib as an SVG element for an HTML page.

Text inherits its colour from the page, for light and dark mode. Output is deterministic: it contains no date and no random
ids.  matplotlib is imported when the first figure is drawn.
"""

import hashlib
import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

from markupsafe import Markup

from redistill.storage.redaction import plain_line, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#010203"  # placeholder, replaced by currentColor in the SVG
COLOURS = ("#3b82c4", "#d97a2b", "#3f9b6a", "#b0569b", "#8a8f98")
SIZE_INCHES = (4.0, 2.3)


def drawn(paint: Callable[["Axes"], None], label: str, size_inches: tuple[float, float] = SIZE_INCHES) -> Markup:
    """Draw a figure, and return its <svg> element.

    Args:
        paint: Function that draws into the axes of the figure.  Lines and texts of colour `INK` have the page's text colour.
        label: Text that describes the figure to readers who cannot see it.
        size_inches: Width and height of the figure.  The page scales the figure.  The font size is 9 points before scaling.

    Example:
        >>> str(drawn(lambda axes: None, "an empty figure"))[:62]
        '<svg role="img" aria-label="an empty figure" xmlns:xlink="http'
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    # Keep text as text, and derive the ids of clip paths from the content.
    style: dict[str, object] = {"svg.fonttype": "none", "svg.hashsalt": "redistill", "font.size": 9, "axes.linewidth": 0.6}
    style |= dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    with matplotlib.style.context(["default", style]):
        figure = Figure(figsize=size_inches, layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        paint(axes)
        out = io.StringIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # matplotlib's font may lack a glyph; the page uses the reader's fonts
            figure.savefig(out, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return _inline(printable(out.getvalue()), plain_line(label))  # texts may have control characters, which XML forbids


def legend_above(axes: "Axes", columns: int) -> None:
    """Add a legend above the axes, where it covers no curve.

    Args:
        axes: The axes.  Labels of its curves may be untrusted texts.
        columns: Number of columns of the legend.
    """
    position = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0}
    for text in axes.legend(frameon=False, fontsize=8, ncols=columns, **position).get_texts():
        text.set_parse_math(False)


def _inline(document: str, label: str) -> Markup:
    """Return the <svg> element of a document.

    The element has no size and no text colour of its own; the page sets both.
    """
    svg = document[document.index("<svg") :]
    svg = re.sub(r' (?:width|height)="[^"]*"', "", svg, count=2)  # the attributes of <svg>
    svg = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r' id="[a-z0-9.]+_\d+"', "", svg)  # names of parts, which would occur in each figure of a page
    digest = hashlib.blake2b((label + svg).encode(), digest_size=6).hexdigest()
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{digest}", svg)  # the same marker in two figures has two ids
    svg = svg.replace(INK, "currentColor").strip()
    return Markup('<svg role="img" aria-label="{}"').format(label) + Markup(svg.removeprefix("<svg"))
