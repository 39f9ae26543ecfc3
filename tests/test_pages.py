"""The pages of the documentation: short, with a purpose, and each in the navigation.

CHANGELOG.md is not tested here: it lists the changes of all versions, and has no limit of length.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
OF_THE_ROOT = sorted(path for path in ROOT.glob("*.md") if path.name != "CHANGELOG.md")
MOST_LINES = 250

every_page = pytest.mark.parametrize("path", [*OF_THE_ROOT, *PAGES], ids=lambda path: path.relative_to(ROOT).as_posix())


def links(text: str) -> list[str]:
    """The targets of relative links to pages, outside of blocks of code."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"\]\((?!\w+://)([^)#\s]+\.md)(?:#[^)]*)?\)", prose)


@every_page
def test_a_page_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


@every_page
def test_a_page_begins_with_its_title_and_what_it_is_for(path: Path) -> None:
    text = re.sub(r"<!--.*?-->\n*", "", path.read_text(encoding="utf-8"))
    title, paragraph = text.split("\n\n")[:2]
    assert re.fullmatch(r"# \S.*", title)
    assert re.match(r"[`*]*[A-Za-z]", paragraph) and len(paragraph.split()) >= 8, paragraph
    assert paragraph.rstrip().endswith((".", ":")), paragraph
    names_purpose = re.search(r"\b(This|These) (page|pages|tutorial)\b", paragraph)
    assert names_purpose or path.name == "README.md", f"write for what the page is: 'This page ...', not {paragraph!r}"


def test_every_page_is_in_the_navigation() -> None:
    """docs/index.md lists pages; a page X.md has the pages of the folder X below it."""
    index = DOCS / "index.md"
    reached, waiting = set(), [index, *((DOCS / target).resolve() for target in links(index.read_text(encoding="utf-8")))]
    while waiting:
        page = waiting.pop()
        assert page.is_file(), page
        reached.add(page)
        waiting += sorted(page.with_suffix("").glob("*.md"))
    assert set(PAGES) - reached == set()


def test_the_index_says_what_each_page_is_for() -> None:
    items = re.findall(r"^- .+$", (DOCS / "index.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(items) > 40
    for item in items:
        assert re.fullmatch(r"- \[[^\]]+\]\([^)]+\.md\): \S.+", item), item
