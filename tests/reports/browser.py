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
    """Save the whole page in the folder REDISTILL_SCREENSHOTS, by default build/screenshots, which git ignores."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    tab.screenshot(SCREENSHOTS / f"{name}.png")


def kept_load_times(tab: Browser, page: Path, name: str) -> None:
    """Add the times of one load to load-times.jsonl beside the screenshots; nothing depends on them.

    "cpu_s" is the processor time of the browser, and "load_event_s" the time on the clock from the navigation to the load
    event, which grows with other work of the machine.
    """
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    before = tab.cpu_seconds()
    tab.open(page)
    times = {"page": name, "bytes": page.stat().st_size, "cpu_s": tab.cpu_seconds() - before}
    times["load_event_s"] = tab.run("performance.getEntriesByType('navigation')[0].loadEventEnd") / 1000
    with (SCREENSHOTS / "load-times.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(times) + "\n")


def chosen(tab: Browser, name: str, steps: int) -> str:
    """Click a list of choices with the mouse, choose the option `steps` further down with keys, and return its value."""
    tab.click(f"#answer-{name}")
    tab.press(*["ArrowDown"] * steps, "Enter")
    return tab.run(f"document.getElementById('answer-{name}').value")


def load_seconds(tab: Browser, page: Path) -> float:
    """The least processor time of three loads of a page, in seconds, of all processes of the browser together.

    Unlike the time on the clock, it does not grow while the browser waits for a busy processor.
    """

    def once() -> float:
        before = tab.cpu_seconds()
        tab.open(page)
        return tab.cpu_seconds() - before

    return min(once() for _ in range(3))


_TEXT = """the of and to in is that for it as was with be by on not he his but at are this have from or had an they which one
you were model answer question because river country paper light number history government however 42 1.5 <b> & “city”"""
_WORDS = _TEXT.split()


def long_answer(name: str, number: int) -> dict[str, Any]:
    """A line of a responses file with a prompt of three paragraphs and an answer of 900 characters, both of common words."""

    def words(count: int, start: int) -> str:
        return " ".join(_WORDS[(start + each * each + 7 * each) % len(_WORDS)] for each in range(count))

    prompt = f"Question {number}: {words(20, number)}?\n\n{words(60, number + 1)}\n\n- {words(8, number)}\n- {words(9, number)}"
    text = "\n".join(words(45, number + each) for each in range(4))
    fields = {"id": f"{name}:{number}", "prompt": prompt, "references": [text[:400]], "rouge_l": float(number)}
    return {**fields, "response": text, "tokens": 200, "finished": True}


def visible_text(tab: Browser, selector: str = "body") -> str:
    """The text of an element that a reader sees, with white space normalized."""
    return " ".join(tab.run(f"document.querySelector({json.dumps(selector)}).innerText").split())
