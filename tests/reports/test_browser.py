"""The report in headless Chromium: two widths, two colour schemes, paper, mouse, keyboard, accessibility."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from redistill.reports.report import build_report
from redistill.storage import files
from tests.faults.chromium import Browser, browser
from tests.reports.browser import (
    MOST_BYTES,
    MOST_SECONDS,
    SCHEMES,
    WIDTHS,
    chosen,
    faults,
    kept_load_times,
    kept_screenshot,
    load_seconds,
    long_answer,
    needs_chromium,
    violations,
    visible_text,
)
from tests.reports.complete import OPEN_ALL, SECTIONS, write_complete_run
from tests.reports.fabricated import PROMPTS, write_lines, write_run

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    baseline = write_complete_run(folder / "sft", "plain-sft", role="baseline")
    return build_report(write_complete_run(folder / "run", "mine"), [baseline], folder / "report.html")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_report_is_complete_and_accessible(tab, report, width, scheme):
    """Every section is there, and every folded part is open."""
    seen = tab.open(report, width=width, scheme=scheme)
    tab.run(OPEN_ALL)
    assert tuple(tab.run(VISIBLE_SECTIONS)) == SECTIONS
    assert violations(tab) == []
    assert faults(tab, seen) == []
    kept_screenshot(tab, f"report-{width}-{scheme}")


VISIBLE = "[...document.querySelectorAll('.answer')].filter(each => each.offsetParent !== null)"
SCORES = f"{VISIBLE}.map(each => Number(each.dataset.score))"
VISIBLE_SECTIONS = "[...document.querySelectorAll('h2')].filter(each => each.offsetParent !== null).map(each => each.id)"


def test_responses_are_filtered_and_sorted_by_mouse(tab, report):
    seen = tab.open(report)
    assert tab.run(f"{VISIBLE}.length") == 20 and "40 of 40 prompts match, 20 visible" in visible_text(tab, "#answer-count")
    tab.click("#answer-more")
    assert tab.run(f"{VISIBLE}.length") == 2 * PROMPTS
    assert chosen(tab, "key", 1) == "score"
    ascending = tab.run(SCORES)
    assert chosen(tab, "order", 1) == "-1"
    assert ascending == sorted(ascending) and tab.run(SCORES) == sorted(tab.run(SCORES), reverse=True)
    assert chosen(tab, "category", 1) == "0"
    heads = tab.run(f"{VISIBLE}.map(each => each.querySelector('.head').textContent)")
    assert heads and all("closed_qa" in head for head in heads)
    assert faults(tab, seen) == []


def test_responses_are_filtered_and_sorted_by_keyboard(tab, report):
    seen = tab.open(report)
    tab.run("document.querySelector('#answer-text').focus()")
    tab.press("Question 11?")
    assert tab.run(f"{VISIBLE}.length") == 2 and "2 of 40 prompts match" in visible_text(tab, "#answer-count")
    focused = []
    for _ in range(3):
        tab.press("Tab")
        focused.append(tab.run("document.activeElement.id"))
    assert focused == ["answer-dataset", "answer-category", "answer-score-from"]
    tab.run("document.querySelector('#answer-key').focus()")
    tab.press("ArrowDown", "ArrowDown")
    assert tab.run("document.getElementById('answer-key').value") == "teacher" and len(tab.run(SCORES)) == 2
    assert faults(tab, seen) == []


def test_responses_are_filtered_by_score_and_length(tab, tmp_path):
    """Each prompt has another score and another length."""
    run = write_run(tmp_path / "run", "mine")
    for path in (run / "responses").glob("*.jsonl"):
        lines = files.read_lines(path)
        write_lines(path, [{**line, "rouge_l": 2.0 * i, "tokens": 10 + i} for i, line in enumerate(lines)])
    seen = tab.open(build_report(run))
    numbers = f"{VISIBLE}.map(each => [Number(each.dataset.shown), Number(each.dataset.length)])"
    tab.run("document.querySelector('#answer-score-from').focus()")
    tab.press("10", "Tab", "20")
    assert sorted(tab.run(numbers)) == sorted([[2.0 * i, 10 + i] for i in range(5, 11)] * 2)
    tab.press("Tab", "13", "Tab", "17")
    assert tab.run("document.activeElement.id") == "answer-length-to"
    assert sorted(tab.run(numbers)) == sorted([[2.0 * i, 10 + i] for i in range(5, 8)] * 2)
    assert chosen(tab, "key", 5) == "category"
    heads = tab.run(f"{VISIBLE}.map(each => each.querySelector('.head span').textContent.split(' · ')[1])")
    assert len(set(heads)) == 3 and sum(a != b for a, b in itertools.pairwise(heads)) == 2
    tab.run("document.querySelector('#answer-key').focus()")
    tab.press("ArrowUp")
    lengths = [length for _, length in tab.run(numbers)]
    assert lengths == sorted(lengths) and "6 of 40 prompts match" in visible_text(tab, "#answer-count")
    assert faults(tab, seen) == []


def test_everything_is_readable_without_scripts(tab, report):
    tab.open(report, scripts=False)
    assert tab.run(f"{VISIBLE}.length") == 2 * PROMPTS
    assert tab.run("document.getElementById('answer-tools').offsetParent === null")


@pytest.mark.parametrize("scripts", [True, False])
def test_paper_has_all_sections_20_responses_and_no_controls(tab, report, scripts):
    seen = tab.open(report, media="print", width=800, scripts=scripts)
    assert tuple(tab.run(VISIBLE_SECTIONS)) == SECTIONS and tab.run(f"{VISIBLE}.length") == 20
    assert "at first 20 of 40" in visible_text(tab, ".printed")
    assert tab.run("document.getElementById('answer-tools').offsetParent === null") and faults(tab, seen) == []


def test_the_responses_that_a_reader_shows_are_printed(tab, report):
    tab.open(report)
    assert tab.run("document.querySelector('.printed').offsetParent === null")
    tab.click("#answer-all")
    assert tab.run(f"{VISIBLE}.length") == 2 * PROMPTS and tab.run("document.activeElement.className").startswith("card answer")
    assert tab.run("['more', 'all'].every(name => document.getElementById('answer-' + name).hidden)")


def test_a_report_of_300_long_prompts_is_printed_on_40_pages(tab, tmp_path):
    """Twenty prompts, each of about one page, and the other sections."""
    run = write_run(tmp_path / "run", "mine")
    for path in run.rglob("responses/*.jsonl"):
        write_lines(path, [long_answer(path.stem, number) for number in range(150)])
    tab.open(build_report(run))
    assert tab.pdf(tmp_path / "report.pdf") <= 40
    tab.click("#answer-all")
    assert tab.run(f"{VISIBLE}.length") == 300


def test_five_models_with_200_responses_each_fit_into_three_megabytes_and_two_seconds(tab, tmp_path):
    """Texts of 800 characters, which is 200 tokens; longer ones are thinned, and the page states how many are shown."""
    run = write_run(tmp_path / "run", "mine", updates=200)
    baselines = [write_run(tmp_path / name, name, role="baseline") for name in ("sft", "kd")]
    for folder in (run, run / "teacher", run / "before", *baselines):
        for path in (folder / "responses").glob("*.jsonl"):
            write_lines(path, [long_answer(path.stem, number) for number in range(100)])
    page = build_report(run, baselines)
    assert page.stat().st_size <= MOST_BYTES and load_seconds(tab, page) <= MOST_SECONDS
    seen = tab.open(page)
    assert tab.run("document.querySelectorAll('.answer .answers > div').length") == 6 * 200
    assert "200 of 200 prompts match" in visible_text(tab, "#answer-count") and faults(tab, seen) == []
    kept_load_times(tab, page, "report")


def test_a_screenshot_of_a_high_page_has_several_files(tab, tmp_path):
    (tmp_path / "high.html").write_text("<!doctype html><title>x</title><div style='height: 33000px'>x</div>", encoding="utf-8")
    tab.open(tmp_path / "high.html", width=390)
    files_saved = tab.screenshot(tmp_path / "high.png")
    assert [path.name for path in files_saved] == ["high.png", "high-2.png", "high-3.png"]
    heights = [int.from_bytes(path.read_bytes()[20:24], "big") for path in files_saved]
    assert heights[:2] == [16_000, 16_000] and 1_000 <= heights[2] < 1_100
