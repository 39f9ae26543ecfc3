"""The English of sources, recipes, help pages and documentation: phrases that have a standard term are not used.

CHANGELOG.md and the lab log quote earlier versions and are not searched.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from redistill.cli.parsers import build_parser
from tests.cli.test_help import pages

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for path in (ROOT / "src").rglob("*") if path.suffix in {".py", ".html", ".yaml"})
OTHERS = [
    ROOT / "Makefile",
    ROOT / ".ci/run",
    ROOT / "pyproject.toml",
    ROOT / "docs/conf.py",
    ROOT / "examples/quickstart.ipynb",
]
QUOTING = {"CHANGELOG.md", "lab-log.md", "lab-log"}
PAGES = [
    path
    for path in (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")))
    if QUOTING.isdisjoint((path.name, path.parent.name))
]

INSTEAD = {
    r"\bto the (letter|bit)\b": "verbatim, exactly; bitwise equal",
    r"\b(is|are|was|were|be) told\b": "is reported, printed, logged",
    r"\btold of\b": "is reported, printed, logged",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bbegun anew\b": "restarted; retried",
    r"\blooks? away\b": "is disabled",
    r"\bmay go well\b": "retryable",
    r"\bhabits? of\b": "compatibility mode",
    r"\bthe teacher's word\b": "teacher logits, teacher target",
    r"\bat hand\b": "available",
    r"\bso many\b": "N",
    r"\b(rooms?|house|workbench)\b": "package, module, builder; space, memory",
}
"""Phrase -> the standard term."""

EXAMPLES = {
    "src/redistill/data/spans/extract.py": r"of the house\b",  # a phrase that the extractor finds
    "src/redistill/toy/words.yaml": r"\bhouse\b",  # a word of the toy language
}
"""File -> text in it that is an example of data."""


def findings(text: str) -> Iterator[str]:
    """Line, phrase and standard term of each match; a phrase may continue on the next line, also of a comment."""
    for pattern, instead in INSTEAD.items():
        for match in re.finditer(pattern.replace(" ", r"[\s#]+"), text, re.IGNORECASE):
            line = text.count("\n", 0, match.start()) + 1
            yield f"line {line}: {' '.join(match.group().split())!r}; use: {instead}"


@pytest.mark.parametrize("path", [*SOURCES, *OTHERS, *PAGES], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_uses_standard_terms(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if example := EXAMPLES.get(path.relative_to(ROOT).as_posix()):
        text = re.sub(example, "-", text)
    assert list(findings(text)) == []


@pytest.mark.parametrize("page", pages(build_parser()), ids=lambda page: page.prog)
def test_a_help_page_uses_standard_terms(page) -> None:
    assert list(findings(page.format_help())) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It is kept to the letter.", ["line 1: 'to the letter'; use: verbatim, exactly; bitwise equal"]),
        ("# a\n# so\n# many", ["line 2: 'so # many'; use: N"]),
        ("Mended\nrows", ["line 1: 'Mended'; use: fix"]),
        ("recommended, household, told apart", []),
    ],
)
def test_a_phrase_is_found_on_its_line(text: str, found: list[str]) -> None:
    assert list(findings(text)) == found
