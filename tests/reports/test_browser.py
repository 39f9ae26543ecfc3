"""The report in headless Chromium: two widths, two colour schemes, paper, mouse, keyboard, accessibility."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from redistill.reports.report import build_report
from tests.faults.chromium import Browser, browser
from tests.reports.browser import SCHEMES, WIDTHS, faults, kept_screenshot, needs_chromium, violations
from tests.reports.fabricated import write_run
from tests.reports.test_report import SECTIONS

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    baseline = write_run(folder / "sft", "plain-sft", role="baseline", updates=40)
    return build_report(write_run(folder / "run", "mine", updates=40), [baseline], folder / "report.html")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_report_is_complete_and_accessible(tab, report, width, scheme):
    seen = tab.open(report, width=width, scheme=scheme)
    assert tab.run("[...document.querySelectorAll('h2')].map(each => each.id)") == [*SECTIONS[:-2], "changes", *SECTIONS[-2:]]
    assert violations(tab) == []
    assert faults(tab, seen) == []
    kept_screenshot(tab, f"report-{width}-{scheme}")
