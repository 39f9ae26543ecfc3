"""Checks of a page in headless Chromium, for all pages of the package.

Example:
    with browser(tmp_path / "profile") as tab:
        seen = tab.open(page, width=390, scheme="dark")
        assert faults(tab, seen) == []
"""

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.faults.chromium import PROGRAM, Browser, Visit

needs_chromium = pytest.mark.skipif(PROGRAM is None, reason="no Chromium here; apt-get install chromium")
SCREENSHOTS = Path(os.environ.get("REDISTILL_SCREENSHOTS") or Path(__file__).parents[2] / "build" / "screenshots")
MOST_SECONDS, MOST_BYTES = 2.0, 3_000_000
"""Limits of a page with 5 x 200 answers."""
WIDTHS, SCHEMES = (1280, 390), ("light", "dark")
_AXE = """
axe.run(document, {runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"], resultTypes: ["violations"]}).then(
  found => found.violations.map(each => [each.id, each.nodes.slice(0, 3).map(node => node.html.slice(0, 200))]))
"""
_WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


def violations(tab: Browser) -> list[Any]:
    """The rules of axe-core that the open page violates, each with up to three elements."""
    found = importlib.util.find_spec("axe_core_python")
    if found is None or found.origin is None:
        pytest.skip("axe-core-python is not installed; pip install '.[dev]'")
    tab.run(Path(found.origin).with_name("axe.min.js").read_text(encoding="utf-8") + "\n; null")
    return tab.run(_AXE)


def faults(tab: Browser, seen: Visit) -> list[str]:
    """What is wrong with the open page: console lines, dialogs, requests, and a page that is wider than its window."""
    wider = tab.run(_WIDER)
    wide = [f"the page is {wider} pixels wider than the window"] if wider > 0 else []
    return [*seen.console, *seen.dialogs, *seen.requests, *wide]


def kept_screenshot(tab: Browser, name: str) -> None:
    """Save a screenshot in the folder REDISTILL_SCREENSHOTS, by default build/screenshots, which git ignores."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    tab.screenshot(SCREENSHOTS / f"{name}.png")


def load_seconds(tab: Browser, page: Path) -> float:
    """The least processor time of three loads of a page, in seconds, of all processes of the browser together.

    Unlike the time on the clock, it does not grow while the browser waits for a busy processor.
    """

    def once() -> float:
        before = tab.cpu_seconds()
        tab.open(page)
        return tab.cpu_seconds() - before

    return min(once() for _ in range(3))


def long_answer(name: str, number: int) -> dict[str, Any]:
    """A line of a responses file with an answer of 800 characters."""
    text = " ".join(f"word{(number * 31 + each) % 997}" for each in range(110))
    fields = {"id": f"{name}:{number}", "prompt": f"Question {number}?", "references": [text[:400]], "rouge_l": float(number)}
    return {**fields, "response": text, "tokens": 200, "finished": True}


def visible_text(tab: Browser, selector: str = "body") -> str:
    """The text of an element that a reader sees, with white space normalized."""
    return " ".join(tab.run(f"document.querySelector({json.dumps(selector)}).innerText").split())
