"""The section of divergences by token: its numbers, its limits, hostile texts, and its page in a browser."""

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from redistill.errors import CheckpointError
from redistill.reports.folders import read_run
from redistill.reports.report import build_report
from redistill.reports.tokens import EDGES, MAX_TOKENS, NUM_ANSWERS, NUM_REVISIONS, Token, position_chart, tokens_section
from redistill.storage.redaction import plain
from tests.faults.chromium import Browser, browser
from tests.faults.hostile import HOSTILE
from tests.reports.browser import SCHEMES, WIDTHS, faults, kept_screenshot, needs_chromium, violations, visible_text
from tests.reports.fabricated import write_lines, write_run
from tests.reports.page import Page
from tests.reports.test_report import without_scripts

WORDS = ["The", " capital", " of", " France", " is", " not", " easy", ".", "\n", " 数", "", "<|endoftext|>"]


def statistics(number: int, name: str, texts: list[str]) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    values = {name: rng.lognormal(-1, 2, len(texts)).tolist()}
    return {
        "tokens": texts,
        **values,
        **{f"{who}_logprob": (-rng.random(len(texts))).tolist() for who in ("student", "teacher")},
    }


def answer(number: int, texts: list[str] = WORDS) -> dict[str, Any]:
    return {"dataset": "dolly", "id": f"dolly:{number}", "seed": 10, **statistics(number, "forward_kl", texts)}


def correction(number: int, texts: list[str] = WORDS, position: int = 4) -> dict[str, Any]:
    before, after = (statistics(10 * number + i, "reverse_kl", texts) | {"spans": [[1, 4], [2, 4]]} for i in range(2))
    return {"step": number, "sample": number, "position": position, "before": before, "after": after}


def with_tokens(folder: Path, answers: list[Any], corrections: list[Any]) -> Path:
    write_run(folder, "mine")
    write_lines(folder / "positions.jsonl", answers)
    write_lines(folder / "revision-positions.jsonl", corrections)
    return folder


def section(folder: Path) -> dict[str, Any]:
    found = tokens_section(read_run(folder))
    assert found is not None
    return found


def test_a_run_without_divergences_has_no_section_and_says_so(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", "mine")
    assert tokens_section(read_run(folder)) is None
    page = build_report(folder).read_text(encoding="utf-8")
    assert (
        'id="tokens"' not in page
        and 'href="#tokens"' not in page
        and "divergences by token of answers (positions.jsonl" in page
    )


def test_maps_have_the_numbers_of_the_files(tmp_path: Path) -> None:
    lines = answer(3), correction(5)
    found = section(with_tokens(tmp_path / "run", [lines[0]], [lines[1]]))
    maps = [(found["answers"][0]["map"], lines[0], "forward_kl")]
    maps += [
        (each, lines[1][name], "reverse_kl")
        for each, name in zip(found["revisions"][0]["maps"], ("before", "after"), strict=True)
    ]
    for each, line, name in maps:
        assert [token.divergence for token in each.tokens] == line[name]
        assert [token.student for token in each.tokens] == pytest.approx(np.exp(line["student_logprob"]))
        assert [token.teacher for token in each.tokens] == pytest.approx(np.exp(line["teacher_logprob"]))
        values = [token.divergence for token in each.largest]
        assert values == sorted(line[name], reverse=True)
    before = found["revisions"][0]["maps"][0].tokens
    assert [token.index for token in before if token.is_error] == [4]
    assert [token.index for token in before if token.in_phrase] == [1, 2, 3]
    assert found["answers"][0]["prompt"].startswith("Question 3?")
    page = build_report(tmp_path / "run").read_text(encoding="utf-8")
    tables = [table[1:] for table in Page(page).tables if table and table[0][0] == "Token"]
    for (each, _, _), table in zip([*maps[1:], maps[0]], tables, strict=True):
        expected = [[str(token.index), f"{token.divergence:.4f}", *shown(token)] for token in each.largest]
        assert [row[1:] for row in table] == expected


def shown(token: Token) -> list[str]:
    return [f"{100 * probability:.1f} %" for probability in (token.student, token.teacher) if probability is not None]


def test_the_summary_sentences_and_histograms_count_every_token_of_the_files(tmp_path: Path) -> None:
    answers, corrections = [answer(i) for i in range(30)], [correction(i, position=i % 12) for i in range(1, 25)]
    found = section(with_tokens(tmp_path / "run", answers, corrections))
    values = np.array([line["forward_kl"] for line in answers])
    assert found["of_answers"].mean == pytest.approx(values.mean()) and found["of_answers"].tokens == values.size
    assert found["of_answers"].large == (values >= 1).sum()
    assert found["of_answers"].bins.sum() == values.size and found["of_answers"].texts == 30
    inner = (values >= EDGES[5]) & (values < EDGES[6])
    assert found["of_answers"].bins[5] == inner.sum()
    for name in ("before", "after"):
        tails = np.concatenate([line[name]["reverse_kl"][line["position"] :] for line in corrections])
        assert found[name].mean == pytest.approx(tails.mean()) and found[name].tokens == tails.size
    page = build_report(tmp_path / "run").read_text(encoding="utf-8")
    assert f"is {values.mean():.3f} nats per token" in page and len(found["charts"]) == 2


def test_maps_are_few_evenly_spaced_and_short(tmp_path: Path) -> None:
    long = ["x"] * 1000
    answers, corrections = [answer(i, long) for i in range(60)], [correction(i, long, 900) for i in range(40)]
    folder = with_tokens(tmp_path / "run", answers, corrections)
    found = section(folder)
    assert [len(found[name]) for name in ("answers", "revisions")] == [NUM_ANSWERS, NUM_REVISIONS]
    assert found["answers"][0]["id"] == "dolly:0" and found["answers"][-1]["id"] == "dolly:59"
    maps = [each["map"] for each in found["answers"]] + [each for item in found["revisions"] for each in item["maps"]]
    assert {(len(each.tokens), each.num_omitted) for each in maps} == {(MAX_TOKENS, 1000 - MAX_TOKENS)}
    assert all(any(token.is_error for token in each.tokens) for item in found["revisions"] for each in item["maps"])
    plain_size = len(build_report(write_run(tmp_path / "plain", "mine"), out=tmp_path / "plain.html").read_bytes())
    assert len(build_report(folder).read_bytes()) - plain_size < 700_000


def test_hostile_token_texts_are_shown_and_not_interpreted(tmp_path: Path) -> None:
    texts = [text[:60] for text in HOSTILE]
    parts = [texts[start : start + MAX_TOKENS] for start in range(0, len(texts), MAX_TOKENS)]
    page = build_report(with_tokens(tmp_path / "run", [answer(i, part) for i, part in enumerate(parts)], [])).read_text("utf-8")
    shown = " ".join(html.unescape(page).replace("⏎", "\n").replace("⇥", "\t").replace("␣", " ").split())
    assert [text for text in texts if " ".join(plain(text.replace("\r", "")).split()) not in shown] == []
    tags = set(re.findall(r"<\s*/?([a-zA-Z:]+)", without_scripts(page)))
    assert not tags & {"script", "img", "iframe", "base", "x:script", "object", "link", "form", "b:script"}


ODD = [None, 7, "text", [], [None], ["a", 1, {}], {"a": 1}, [1e308, 1e308, -1e308], [-5, 2**70], [["a", "b"]], True]


@pytest.mark.parametrize("value", ODD)
def test_values_of_another_type_do_not_stop_the_report(tmp_path: Path, value: Any) -> None:
    keys = ("tokens", "forward_kl", "student_logprob", "dataset", "id", "seed")
    inner = ("tokens", "reverse_kl", "teacher_logprob", "spans")
    corrections = [{**correction(1), "before": {**correction(1)["before"], name: value}} for name in inner]
    corrections += [{**correction(1), name: value} for name in ("position", "before", "after", "step")]
    answers = [{**answer(1), name: value} for name in keys]
    assert 'id="tokens"' in build_report(with_tokens(tmp_path / "run", answers, corrections)).read_text(encoding="utf-8")


def test_a_damaged_file_is_reported_in_one_line(tmp_path: Path) -> None:
    folder = with_tokens(tmp_path / "run", [answer(1)], [])
    (folder / "positions.jsonl").write_text('{"tokens"\n{}\n')
    with pytest.raises(CheckpointError, match=r"positions\.jsonl:1: not JSON"):
        build_report(folder)


def test_a_correction_has_the_prompt_that_revisions_jsonl_logged(tmp_path: Path) -> None:
    folder = with_tokens(tmp_path / "run", [], [{**correction(i), "sample": 7 * i} for i in (1, 2)] + [correction(3)])
    shown = section(folder)["revisions"]
    assert [each["prompt"] for each in shown] == ["Ask 1. ", "Ask 2. ", None]  # no line of revisions.jsonl has step 3, sample 3


def test_the_histogram_of_error_positions_has_all_logged_corrections(tmp_path: Path) -> None:
    chart = position_chart({0: 700, 9: 300})
    assert chart is not None and chart["title"] == "Position of the error token, all 1,000 logged corrections"
    assert position_chart({}) is None
    folder = write_run(tmp_path / "run", "mine")
    assert "all 30 logged corrections" in build_report(folder).read_text(encoding="utf-8")


# --- in a browser -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    answers, corrections = [answer(i, WORDS * 4) for i in range(8)], [correction(i, WORDS * 4, 7 * i) for i in range(1, 6)]
    return build_report(with_tokens(tmp_path_factory.mktemp("report") / "run", answers, corrections))


@needs_chromium
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_maps_are_readable_and_accessible(tab: Browser, report: Path, width: int, scheme: str) -> None:
    seen = tab.open(report, width=width, scheme=scheme)
    tab.run("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert violations(tab) == [] and faults(tab, seen) == []
    assert "the mean divergence KL(teacher, student) is" in visible_text(tab)
    kept_screenshot(tab, f"tokens-{width}-{scheme}")


@needs_chromium
def test_the_tables_of_all_numbers_open_by_mouse_and_by_keyboard(tab: Browser, report: Path) -> None:
    tab.open(report, width=1280, scheme="light")
    of_maps = "[...document.querySelectorAll('.token-map details')].map(each => each.open)"
    assert not any(tab.run(of_maps))
    tab.click(".token-map details summary")
    tab.run("document.querySelectorAll('.token-map details summary')[1].focus()")
    tab.press("Enter")
    assert tab.run(of_maps)[:3] == [True, True, False]


@needs_chromium
def test_the_numbers_of_every_token_are_reached_by_keyboard_and_by_mouse(tab: Browser, report: Path) -> None:
    """Tab reaches a map once, and arrow keys its tokens; the numbers are visible text below the map."""
    seen = tab.open(report)
    stops = "[...document.querySelectorAll('.token-map')].map(each => each.querySelectorAll('.token[tabindex=\"0\"]').length)"
    assert set(tab.run(stops)) == {1}
    tab.run("document.querySelector('.token').focus()")
    found = [visible_text(tab, ".numbers")]
    for _ in range(len(WORDS) * 4 - 1):
        tab.press("ArrowRight")
        found.append(visible_text(tab, ".numbers"))
    rows = tab.run(
        "[...document.querySelector('.token-map').querySelectorAll('tr[data-token]')].map(row =>"
        " [Number(row.dataset.token), ...[...row.cells].map(cell => cell.textContent)])"
    )
    expected = [
        f"Token {position}: {text} · divergence {value} nats · probability: student {student}, teacher {teacher}"
        for _, text, position, value, student, teacher in sorted(rows)
    ]
    assert found == [" ".join(text.split()) for text in expected] and len(set(found)) == len(WORDS) * 4
    tab.press("Home")
    assert visible_text(tab, ".numbers") == found[0]
    tab.click(".token:nth-child(3)")
    assert visible_text(tab, ".numbers") == found[2] and faults(tab, seen) == []
