"""What the pages share: one look, escaping that no template can forget, and how numbers are written.

Model text is what a stranger may have written: everything is escaped, control characters are dropped, and a page's own policy
forbids it to load or run anything.
"""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from redistill.records import FRACTION, PERCENT
from redistill.reports.folders import Measure, number
from redistill.storage.redaction import plain

MAX_TEXT = 2000
NOTHING = "–"


def render(template: str, page: dict[str, Any]) -> str:
    """A page of `templates/` with `page` put in."""

    def finalize(value: Any) -> Any:
        if value is None:
            return NOTHING
        return value if isinstance(value, Markup) else plain(str(value))

    environment = Environment(
        loader=PackageLoader("redistill.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "score": score,
        "difference": difference,
        "heading": heading,
        "fixed": fixed,
        "signed": signed,
        "percent": percent,
        "short": short,
        "large": large,
    }
    return environment.get_template(template).render(page)


def score(value: Any, unit: str, digits: int = 2) -> str | None:
    """A metric's value in its unit; None of what is no number.

    Example:
        >>> score(12.345, "%"), score(0.125, "fraction"), score(3, "words")
        ('12.35', '12.5 %', '3.00')
    """
    return percent(value) if unit == FRACTION else fixed(value, digits)


def difference(value: Any, unit: str) -> str:
    """A difference of two values of a metric with its sign, a true minus: of fractions in percent."""
    known = number(value)
    return signed(100 * known if known is not None and unit == FRACTION else known)


def heading(measure: Measure) -> str:
    """What a column of a metric is called, with its unit where the figures do not show it.

    Example:
        >>> heading(Measure("w", "length", "words", "lower")), heading(Measure("f", "F1", "%", "higher"))
        ('length, words', 'F1')
    """
    return measure.title if measure.unit in (PERCENT, FRACTION, "") else f"{measure.title}, {measure.unit}"


def fixed(value: Any, digits: int = 2) -> str | None:
    """A number with so many digits behind the point; None of what is no number."""
    known = number(value)
    return None if known is None else f"{known:.{digits}f}"


def signed(value: Any, digits: int = 2) -> str:
    """A number with its sign, a true minus."""
    known = number(value)
    return NOTHING if known is None else f"{known:+.{digits}f}".replace("-", "−")


def percent(value: Any) -> str | None:
    """A share as percent; None of what is no number."""
    known = number(value)
    return None if known is None else f"{100 * known:.1f} %"


def short(value: Any) -> str:
    """A text cut at MAX_TEXT characters, saying how many are left out."""
    text = plain(str(value))  # before the cut, which may go through a secret
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} … ({len(text) - MAX_TEXT:,} more characters)"


def large(value: Any, billion: str = "B") -> str:
    """Three digits of a number, with a suffix for its size."""
    known = number(value)
    if known is None:
        return NOTHING
    for size, suffix in ((1e12, "T"), (1e9, billion), (1e6, "M"), (1e3, "k")):
        if abs(known) >= size:
            return f"{known / size:.3g} {suffix}"
    return f"{known:.3g}"
