"""Rendering shared by all HTML pages: escaping, style and number formats.

Model text is untrusted: all values are escaped, control characters are removed, and the Content-Security-Policy of each page
forbids loading resources and running scripts.
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
    """Render a template of `templates/` with the variables in `page`."""

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
    """A metric's value formatted in its unit; None if `value` is not a number.

    Args:
        value: The value; a fraction in [0, 1] where `unit` is "fraction".
        unit: Unit of the metric.
        digits: Digits after the decimal point, for units other than "fraction".

    Example:
        >>> score(12.345, "%"), score(0.125, "fraction"), score(3, "words")
        ('12.35', '12.5 %', '3.00')
    """
    return percent(value) if unit == FRACTION else fixed(value, digits)


def difference(value: Any, unit: str) -> str:
    """A signed difference of a metric; in percentage points for fractions."""
    known = number(value)
    return signed(100 * known if known is not None and unit == FRACTION else known)


def heading(measure: Measure) -> str:
    """Column heading of a metric, with its unit unless values include it.

    Example:
        >>> heading(Measure("w", "length", "words", "lower")), heading(Measure("f", "F1", "%", "higher"))
        ('length, words', 'F1')
    """
    return measure.title if measure.unit in (PERCENT, FRACTION, "") else f"{measure.title}, {measure.unit}"


def fixed(value: Any, digits: int = 2) -> str | None:
    """A number with `digits` digits after the decimal point; None for other values."""
    known = number(value)
    return None if known is None else f"{known:.{digits}f}"


def signed(value: Any, digits: int = 2) -> str:
    """A number with its sign, U+2212 for minus; a dash for other values."""
    known = number(value)
    return NOTHING if known is None else f"{known:+.{digits}f}".replace("-", "−")


def percent(value: Any) -> str | None:
    """A fraction as percent; None if `value` is not a number."""
    known = number(value)
    return None if known is None else f"{100 * known:.1f} %"


def short(value: Any) -> str:
    """A text truncated to MAX_TEXT characters, with the number of omitted ones."""
    text = plain(str(value))  # redact first: truncation could split a secret
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} … ({len(text) - MAX_TEXT:,} more characters)"


def large(value: Any, billion: str = "B") -> str:
    """A number with three significant digits and the suffix k, M, `billion` or T."""
    known = number(value)
    if known is None:
        return NOTHING
    for size, suffix in ((1e12, "T"), (1e9, billion), (1e6, "M"), (1e3, "k")):
        if abs(known) >= size:
            return f"{known / size:.3g} {suffix}"
    return f"{known:.3g}"
