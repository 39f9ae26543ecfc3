"""The documentation site that `make docs` builds: links, anchors, llms.txt, and search without a network."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.faults.chromium import Browser, browser
from tests.reports.browser import needs_chromium

SITE = Path(__file__).parents[1] / "build/site"
SEARCH = "Search.performSearch({!r})"
RESULTS = """new Promise(done => {const look = () => {
  const found = [...document.querySelectorAll('#search-results li a')].map(a => a.getAttribute('href'));
  const ended = /Search finished|did not match/.test(document.getElementById('search-results').textContent);
  ended ? done(found) : setTimeout(look, 100)}; look()})"""

pytestmark = pytest.mark.site


class Page(HTMLParser):
    """The ids of a page, and the addresses that it refers to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.targets: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect id, href and src."""
        values = {name: value or "" for name, value in attrs}
        self.ids.add(values.get("id", ""))
        self.targets += [values[name] for name in ("href", "src") if name in values]


@pytest.fixture(scope="module")
def pages() -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(SITE.rglob("*.html")) if "_static" not in path.parts}


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def test_every_link_and_anchor_of_the_site_has_a_target(pages: dict[Path, Page]) -> None:
    assert len(pages) > 100
    for path, page in pages.items():
        for target in page.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            found = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert found.exists(), f"{path.relative_to(SITE)}: {target}"
            if parts.fragment and found.suffix == ".html":
                assert unquote(parts.fragment) in pages[found].ids, f"{path.relative_to(SITE)}: {target}"


def test_llms_txt_lists_pages_as_markdown() -> None:
    text = (SITE / "llms.txt").read_text(encoding="utf-8")
    assert text.startswith("# redistill\n\n> redistill trains ")
    targets = re.findall(r"^- \[[^\]]+\]\(([^)]+)\): ", text, re.MULTILINE)
    assert len(targets) > 40
    for target in targets:
        assert (SITE / target).read_text(encoding="utf-8").startswith("# "), target


@needs_chromium
def test_the_first_page_loads_nothing_from_the_network(tab: Browser) -> None:
    seen = tab.open(SITE / "docs/index.html")
    assert [url for url in seen.requests if not url.startswith(("file:", "data:"))] == []


@needs_chromium
@pytest.mark.parametrize(
    ("query", "page"),
    [
        ("prompt_logprobs", "docs/served-teacher.html"),
        ("lmbda", "docs/moving/trl-gkd.html"),
        ("SkewForwardKL", "docs/api/losses-divergences.html"),
    ],
)
def test_search_works_over_file_urls(tab: Browser, query: str, page: str) -> None:
    tab.open(SITE / "search.html")
    tab.run(SEARCH.format(query))
    found = tab.run(RESULTS)
    assert page in {address.partition("#")[0].partition("?")[0] for address in found}, found
