"""The comparison page in headless Chromium: two widths, two colour schemes, paper, mouse, keyboard, no scripts."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from redistill.reports.compare import build_comparison
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
from tests.reports.complete import OPEN_ALL, write_judgement
from tests.reports.fabricated import write_lines, write_sweep

pytestmark = needs_chromium
GAINS = {"sft": 0.0, "kd": 2.0, "mgsr": 9.0}
PROMPTS = 15  # of each of two data sets
SECTIONS = ["verdict", "charts", "table-1", "table-2", "table-6", "table-7", "size", "responses", "settings", "tests", "repeat"]
VISIBLE = "[...document.querySelectorAll('.response')].filter(each => each.offsetParent !== null)"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    sweep = write_sweep(folder / "sweep", GAINS, seeds=(10, 20), prompts=PROMPTS)
    path = sweep / "mgsr-seed20" / "run.json"
    described = json.loads(path.read_text())
    path.write_text(json.dumps({**described, "command": "redistill run x.yaml", "cost": {**described["cost"], "updates": 7}}))
    write_judgement(sweep / "mgsr-seed20")
    build_comparison([sweep], [folder / "compare.html"])
    return folder / "compare.html"


def visible_ids(tab: Browser) -> list[str]:
    return tab.run(f"{VISIBLE}.map(each => each.querySelector('.scores').textContent.split(' · ')[1])")


def open_ids(tab: Browser) -> list[str]:
    return tab.run(
        f"{VISIBLE}.filter(each => each.open).map(each => each.querySelector('.scores').textContent.split(' · ')[1])"
    )


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_is_complete_and_accessible(tab, page, width, scheme):
    seen = tab.open(page, width=width, scheme=scheme)
    tab.run(OPEN_ALL)
    assert tab.run("[...document.querySelectorAll('h2')].filter(each => each.offsetParent).map(each => each.id)") == SECTIONS
    text = visible_text(tab)
    assert "Difference to sft, dolly" in text and "judge-7b" in text  # charts of each data set, and the judge's table
    assert violations(tab) == []
    assert faults(tab, seen) == []
    kept_screenshot(tab, f"compare-{width}-{scheme}")


def test_every_link_of_the_page_leads_to_a_visible_place(tab, page):
    tab.open(page)
    script = "[...document.querySelectorAll('a')].filter(each => !document.querySelector(each.hash)?.offsetParent).length"
    assert tab.run(script) == 0


def test_all_sections_are_printed(tab, page, tmp_path):
    seen = tab.open(page, media="print", width=800)
    assert tab.run("[...document.querySelectorAll('h2')].filter(each => each.offsetParent).map(each => each.id)") == SECTIONS
    assert faults(tab, seen) == []


@pytest.mark.parametrize("scripts", [True, False])
def test_closed_responses_are_printed_as_well(tab, page, tmp_path, scripts):
    """The texts of the visible responses are laid out on paper."""
    tab.open(page, media="print", width=800, scripts=scripts)
    shown = tab.run(
        "[...document.querySelectorAll('.response')].filter(each => !each.open && [...each.querySelectorAll('.text')].every("
        "text => text.checkVisibility({contentVisibilityAuto: true}) && text.getBoundingClientRect().height > 0)).length"
    )
    assert shown == 20
    assert tab.pdf(tmp_path / "compare.pdf") <= 30


def test_matching_responses_are_opened_for_printing_and_closed_again(tab, page):
    """For browsers whose styles cannot show closed elements."""
    tab.open(page)
    tab.run("document.querySelector('#answer-text').focus()")
    tab.press("KD ANSWERS 7 ")
    tab.run("window.dispatchEvent(new Event('beforeprint'))")
    assert sorted(open_ids(tab)) == ["dolly:7", "vicuna:7"]
    tab.run("window.dispatchEvent(new Event('afterprint'))")
    assert open_ids(tab) == [] and len(visible_ids(tab)) == 2


def test_responses_are_filtered_by_text_and_data_set(tab, page):
    tab.open(page)
    assert len(visible_ids(tab)) == 20 and "30 of 30 prompts match, 20 visible" in visible_text(tab, "#answer-count")
    tab.run("document.querySelector('#answer-text').focus()")
    tab.press("KD ANSWERS 7 ")
    assert sorted(visible_ids(tab)) == ["dolly:7", "vicuna:7"]
    assert chosen(tab, "dataset", 2) == "1"
    assert visible_ids(tab) == ["vicuna:7"]


def test_responses_are_sorted_by_a_score_in_both_orders(tab, page):
    tab.open(page)
    names = tab.run("[...document.querySelectorAll('#answer-key option')].map(each => each.textContent)")
    assert names == [
        "data set and disagreement",
        "disagreement",
        "mean score of the methods",
        *(f"score of {m}" for m in GAINS),
        "mean length in tokens",
        "category",
    ]
    tab.run("document.querySelector('#answer-key').focus()")
    tab.press(*["ArrowDown"] * names.index("score of mgsr"))
    scores = tab.run(f"{VISIBLE}.map(each => Number(each.dataset.score2))")
    assert scores == sorted(scores, reverse=True) and len(set(scores)) > 9
    assert chosen(tab, "order", 1) == "1"
    lowest = tab.run(f"{VISIBLE}.map(each => Number(each.dataset.score2))")
    assert lowest == sorted(lowest) and lowest[0] < scores[-1]


def test_responses_are_filtered_by_mean_score_length_and_category(tab, page):
    tab.open(page)
    tab.run("document.querySelector('#answer-score-from').focus()")
    tab.press("20", "Tab", "35")
    scores = tab.run(f"{VISIBLE}.map(each => Number(each.dataset.average))")
    assert 0 < len(scores) < 20 and all(20 <= each <= 35 for each in scores)
    tab.press("Tab", "13")
    assert visible_ids(tab) == []
    tab.open(page)
    tab.run("document.querySelector('#answer-category').focus()")
    tab.press("ArrowDown")
    texts = tab.run(f"{VISIBLE}.map(each => each.querySelector('.scores').textContent.split(' · ')[2])")
    assert len(texts) == 10 and set(texts) == {"closed_qa"}


def test_prompts_are_stepped_through_by_mouse_and_by_keyboard(tab, page):
    tab.open(page)
    ids = visible_ids(tab)
    tab.click("#answer-next")
    tab.click("#answer-next")
    assert open_ids(tab) == [ids[1]]
    tab.run("document.querySelector('#answer-previous').focus()")
    tab.press("Enter")
    assert open_ids(tab) == [ids[0]]
    tab.run("document.querySelector('.response summary').focus()")
    tab.press("ArrowDown", "ArrowDown", "Enter")
    assert open_ids(tab) == [ids[0], ids[2]]
    tab.press("ArrowUp", "ArrowUp", "Enter")
    assert open_ids(tab) == [ids[2]]
    tab.click("#answer-more")
    assert len(visible_ids(tab)) == 30


def test_without_scripts_every_response_can_be_read(tab, page):
    seen = tab.open(page, scripts=False)
    assert tab.run("document.querySelector('#answer-tools').offsetParent") is None
    assert len(visible_ids(tab)) == 2 * PROMPTS
    tab.click(".response summary")
    assert "kd answers" in visible_text(tab, ".response[open]") and "mgsr answers" in visible_text(tab, ".response[open]")
    assert faults(tab, seen) == []


def test_five_methods_with_200_responses_each_fit_into_three_megabytes_and_two_seconds(tab, tmp_path):
    sweep = write_sweep(
        tmp_path / "sweep", dict.fromkeys(("sft", "kd", "gkd", "minillm", "mgsr"), 1.0), seeds=(10,), prompts=100
    )
    for path in sweep.rglob("responses/*.jsonl"):
        write_lines(path, [long_answer(path.stem, number) for number in range(100)])
    page = tmp_path / "compare.html"
    build_comparison([sweep], [page])
    assert page.stat().st_size <= MOST_BYTES and load_seconds(tab, page) <= MOST_SECONDS
    tab.open(page)
    assert tab.run("document.querySelectorAll('.response .answers > div').length") == 7 * 200
    kept_load_times(tab, page, "compare")
