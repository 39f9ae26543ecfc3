"""Renders templates: escapes all values, and formats numbers and texts.

Model text is untrusted: all values are escaped, and control characters are removed.  The Content-Security-Policy of each HTML
page forbids loading resources.  It allows only the scripts that are inserted from the folder `templates/`, by their hashes.
"""

import base64
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from redistill.records import FRACTION
from redistill.reports.folders import number
from redistill.storage import files
from redistill.storage.redaction import plain, plain_line

MAX_TEXT = 2000
NOTHING = "–"
_POLICY = ("style-src 'unsafe-inline'", "img-src data:", "base-uri 'none'", "form-action 'none'")


def render(
    template: str, page: Mapping[str, object], escaped: Callable[[str], str] = plain, scripts: Sequence[str] = ()
) -> str:
    """Fill in a template of the folder `templates/`, and return the text.

    Every value is escaped; None is shown as a dash.  In addition to `page`, a template has the variables `policy` (the
    Content-Security-Policy of an HTML page) and `scripts` (the texts of the scripts).

    Args:
        template: File name of the template.
        page: Variables of the template, by name.
        escaped: Function that escapes a text for the output format. A result of type `Markup` is inserted unchanged; any other
            result is also HTML-escaped.
        scripts: File names of the page's own scripts in the folder `templates/`.  The policy allows only these scripts.
    """

    def finalize(value: object) -> str:
        return value if isinstance(value, Markup) else escaped(NOTHING if value is None else str(value))

    loader = PackageLoader("redistill.reports")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (score, difference, fixed, percent, large, short, visible, plain_line, files.slug)
    environment.filters |= {function.__name__: function for function in filters}
    texts = [loader.get_source(environment, script)[0] for script in scripts]
    inserted = {"policy": Markup(policy(texts)), "scripts": list(map(Markup, texts))}
    return environment.get_template(template).render({**page, **inserted})


def policy(scripts: Sequence[str]) -> str:
    """Return the Content-Security-Policy that allows only given scripts in a page.

    Args:
        scripts: The text of each inline script.

    Example:
        >>> policy(["start()"]).split("; ")[1]
        "script-src 'sha256-DIm7WJS6ZKDYe5qFLPy+h4JFI9Bol5QmYC57mt3Fb00='"
    """
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(["script-src", *(f"'sha256-{found}'" for found in hashes)])
    return "; ".join(["default-src 'none'", *([allowed] if scripts else []), *_POLICY])


def markdown_text(text: str) -> Markup:
    r"""Escape a text for Markdown, as one line without control characters.

    Example:
        >>> str(markdown_text("a|b *c* <img>"))
        'a\\|b \\*c\\* \\<img\\>'
    """
    return Markup(re.sub(r"([\\`*_\[\]<>|#~&])", r"\\\1", plain_line(text)))


def score(value: object, unit: str, digits: int = 2) -> str:
    """Format a metric's value in its unit; a dash if `value` is not a number.

    Args:
        value: The value; a fraction in [0, 1] if `unit` is "fraction".
        unit: Unit of the metric.
        digits: Digits after the decimal point, for units other than "fraction".

    Example:
        >>> score(12.345, "%"), score(0.125, "fraction"), score(3, "words"), score(None, "%")
        ('12.35', '12.5 %', '3.00', '–')
    """
    return percent(value) if unit == FRACTION else fixed(value, digits)


def difference(value: object, unit: str) -> str:
    """Format a difference of two scores with its sign; a dash if it is not a number.

    If `unit` is "fraction", the result is in percentage points.

    Example:
        >>> difference(0.0125, "fraction"), difference(-3, "words")
        ('+1.25', '−3.00')
    """
    known = number(value)
    return NOTHING if known is None else f"{100 * known if unit == FRACTION else known:+.2f}".replace("-", "−")


def fixed(value: object, digits: int = 2) -> str:
    """Format a number with `digits` decimal places; a dash if it is not a number."""
    known = number(value)
    return NOTHING if known is None else f"{known:.{digits}f}"


def percent(value: object) -> str:
    """Format a fraction as percent, such as "12.3 %"; a dash if it is not a number."""
    known = number(value)
    return NOTHING if known is None else f"{100 * known:.1f} %"


def short(value: object) -> str:
    """Truncate a text to 2000 characters, and state how many characters are omitted."""
    text = plain(str(value))  # redact first: truncation could split a secret
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} … ({len(text) - MAX_TEXT:,} more characters)"


def visible(token: object) -> str:
    """Return the text of a token, or visible symbols if it is only white space.

    Each line break, space and tab of such a token has its own symbol.  An empty text and None give the symbol ∅.

    Example:
        >>> visible(" the"), visible("\\n"), visible(None)
        (' the', '⏎', '∅')
    """
    text = str(token or "")
    return text if text.strip() else text.translate(str.maketrans("\n \t", "⏎␣⇥")) or "∅"


def counted(number_text: str, noun: str) -> str:
    """Return a number with its noun, which has a plural "s" unless the number is 1.

    Example:
        >>> counted("1", "second"), counted("1.2 k", "update")
        ('1 second', '1.2 k updates')
    """
    return f"{number_text} {noun}{'' if number_text == '1' else 's'}"


def large(value: object, billion: str = "B") -> str:
    """Format a number with three significant digits and the suffix k, M, B or T.

    The argument `billion` is the suffix for 10^9, such as "G" for bytes.  The result is a dash if `value` is not a number.
    """
    known = number(value)
    if known is None:
        return NOTHING
    for size, suffix in ((1e12, "T"), (1e9, billion), (1e6, "M"), (1e3, "k")):
        if abs(known) >= size:
            return f"{known / size:.3g} {suffix}"
    return f"{known:.3g}"
