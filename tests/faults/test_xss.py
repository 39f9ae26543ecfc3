"""Untrusted text is shown by pages, tables and terminals and interpreted by none; checked with a real browser."""

import csv
import io
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from redistill.reports import terminal
from redistill.reports.compare import build_comparison
from redistill.reports.report import build_report
from redistill.storage import files
from redistill.storage.redaction import plain
from tests.faults.chromium import PROGRAM, Browser, browser
from tests.faults.counts import trials
from tests.faults.hostile import HOSTILE, MARK, batches, hidden
from tests.reports.fabricated import metrics, write_json, write_lines, write_method

POLICY = re.compile(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>")
PROMPTS = 12  # of a run
MOST = len(HOSTILE)
MOST_CHARACTERS = 60  # of the text of a token and of the title of a metric


def hostile_run(folder: Path, texts: Sequence[str], *, curves: bool = False) -> Path:
    """Write a run folder; each text is a prompt, a response and a reference, and all other fields contain all texts."""
    everything = " ¦ ".join(texts)
    write_json(folder / "run.json", hostile_description(everything))
    if curves:
        event = {"kind": "event", "step": everything, "event": everything, "text": everything}
        lines = [{**line, "origin": {everything: 3, "gold": 1}} for line in metrics(2)]
        write_lines(folder / "metrics.jsonl", [*lines, event])
    token = {"kept": everything, "student_token": texts[0], "teacher_token": texts[-1], "step": everything}
    write_lines(
        folder / "revisions.jsonl", [{**token, "prompt": text, "new_tail": text, "student_tail": text} for text in texts]
    )
    for part in ("", "teacher", "before"):
        write_answers(folder / part, texts, everything)
    return folder


def hostile_description(everything: str) -> dict[str, Any]:
    """The content of run.json with this text in every field."""
    named = {"name": everything, "method": everything, "status": everything, "created": everything, "commit": everything}
    about = {"path": everything, everything: 1}
    return {
        "schema": 1,
        **named,
        "command": everything,
        "versions": {everything: everything},
        "machine": {everything: everything},
        "spans": {"backend": everything},
        "config": {"name": everything, "teacher": {"model": everything, "revision": everything}, everything: [everything]},
        "data": {"train": about, everything: about},
        "models": {"teacher": {"name": everything, "parameters": 7}, "student": {"name": everything, "parameters": 3}},
    }


def write_answers(folder: Path, texts: Sequence[str], everything: str) -> None:
    lines = [
        {
            **{"id": f"{i}{text}", "prompt": text, "response": text, "references": [text], "category": text},
            **{"rouge_l": float(i), "finished": True},
        }
        for i, text in enumerate(texts)
    ]
    write_lines(folder / "responses" / "toy-seed10.jsonl", lines)
    described = {"prompts": len(texts), "seeds": {"10": {"rouge_l": 1.0}}, "teacher_forced": {"kl": 1.0}}
    write_json(folder / "scores.json", {"schema": 1, "model": everything, "datasets": {"toy": described}})


def hostile_sweep(folder: Path) -> Path:
    """Write a sweep of runs; labels, names, settings and machines of each consist of a third of the strings."""
    rows = batches(-(-len(HOSTILE) // 3))
    for number, texts in enumerate(rows):
        label = " ¦ ".join(texts)
        change = {
            "name": label,
            "machine.cpu": label,
            "config.training.precision": label,
            "commit": label,
            "data.train.source": label,
        }
        scores = {"toy": {10: [number + 1.0, 2.0, 3.0]}, f"a{label[:40]}": {10: [1.0, 2.0, number + 1.0]}}
        write_method(folder / f"run{number}", scores, label, change=change)
    runs = [{"label": " ¦ ".join(texts), "seed": 10, "folder": f"run{number}"} for number, texts in enumerate(rows)]
    runs.append({"label": " ¦ ".join(HOSTILE[:9]), "seed": 11, "folder": "missing"})
    write_json(folder / "sweep.json", {"schema": 1, "name": " ¦ ".join(HOSTILE[-20:]), "runs": runs})
    return folder


def seen(text: str) -> str:
    """A text with white space normalized, as in the text of a page."""
    return " ".join(text.split())


# --- in a browser -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if PROGRAM is None:
        pytest.skip("no Chromium here; apt-get install chromium")
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def visited(tab: Browser, page: Path) -> str:
    """The text of a page, after checking that it runs and loads nothing, with and without its policy."""
    html = page.read_text(encoding="utf-8")
    bare = page.with_name(f"bare-{page.name}")
    bare.write_text(POLICY.sub("", html, count=1), encoding="utf-8")
    assert "Content-Security-Policy" in html and "Content-Security-Policy" not in bare.read_text(encoding="utf-8")
    for each in (page, bare):
        visit = tab.visit(each)
        assert (visit.dialogs, visit.console, visit.requests) == ([], [], []), each
    return seen(visit.text)


def test_the_browser_detects_scripts_and_requests(tab: Browser, tmp_path: Path) -> None:
    (tmp_path / "open.html").write_text("".join(["<!doctype html><title>x</title>", *HOSTILE[:6]]), encoding="utf-8")
    visit = tab.visit(tmp_path / "open.html")
    assert {"1", "3"} <= set(visit.dialogs)
    assert visit.console and any(MARK in request for request in visit.requests)


def test_a_report_shows_every_string_verbatim_and_runs_nothing(tab: Browser, tmp_path: Path) -> None:
    shown = 0
    for number, texts in enumerate(batches(PROMPTS)[: trials(3, 100)]):
        run = hostile_run(tmp_path / str(number), texts, curves=number == 0)
        baselines = [hostile_run(tmp_path / f"{number}-baseline", texts[::-1])] if number == 1 else []
        text = visited(tab, build_report(run, baselines))
        missing = [
            string for string in texts if text.count(seen(plain(string))) < 3 * 3
        ]  # prompt, answers, reference, corrections
        assert not missing
        shown += len(texts)
    assert shown >= min(60, 3 * PROMPTS)


def crowded(folder: Path) -> Path:
    """Write a run of which every string is in every field of run.json, and a prompt, a category, a metric and a token.

    Every string is also a word of a judge and of a window.
    """
    hostile_run(folder, HOSTILE[:PROMPTS], curves=True)
    write_json(folder / "run.json", hostile_description(" ¦ ".join(HOSTILE)))
    write_answers(folder, HOSTILE, "model")
    metrics_of = {"rouge_l": {"title": "ROUGE-L", "unit": "%", "better": "higher"}}
    metrics_of |= {f"m{i}": {"title": text, "unit": "", "better": "higher"} for i, text in enumerate(HOSTILE)}
    for part in ("", "teacher"):
        scores = files.read_json(folder / part / "scores.json")
        scores["datasets"]["toy"]["metrics"] = metrics_of
        write_json(folder / part / "scores.json", scores)
    values = {"forward_kl": [1.0] * MOST, "student_logprob": [-1.0] * MOST, "teacher_logprob": [-2.0] * MOST}
    before = {"tokens": [text[:MOST_CHARACTERS] for text in HOSTILE], "reverse_kl": [1.0] * MOST, **values}
    write_lines(folder / "positions.jsonl", [{"dataset": "toy", "id": HOSTILE[0], "seed": 10, **before}])
    correction = {"step": HOSTILE[1], "sample": HOSTILE[2], "position": 3, "before": before, "after": before}
    write_lines(folder / "revision-positions.jsonl", [correction])
    judged = [
        {"model": text, "against": text, "seeds": [text], "datasets": {text: {"prompts": 1, "score": 1.0}}} for text in HOSTILE
    ]
    write_json(folder / "judge.json", {"schema": 1, "comparisons": judged})
    numbers = dict.fromkeys(("lower", "upper", "kept_classes", "kept_mass", "recovered", "divergence"), 0.5)
    parts = [HOSTILE[start : start + 20] for start in range(0, len(HOSTILE), 20)]
    windows = [
        {
            **{"row": part[0], "position": part[-1], "context": "", "target": part[0], "mode": part[0], **numbers},
            "classes": [{"text": text, "rank": 1 + i, "teacher": 0.1, "student": 0.1} for i, text in enumerate(part)],
        }
        for part in parts
    ]
    write_lines(folder / "windows.jsonl", windows)
    return folder


def test_all_strings_in_all_fields_of_one_report_and_one_comparison_run_nothing(tab: Browser, tmp_path: Path) -> None:
    """Scripts are on, and every element is touched, so that the pages show, sort and filter the strings."""
    run = crowded(tmp_path / "run")
    text = visited(tab, build_report(run, [run]))
    # A token map has signs in place of tabs and line ends, and cuts off long tokens.
    short = [string for string in HOSTILE if len(string) <= MOST_CHARACTERS and not set(string) & set("\t\n\r")]
    # prompt, two answers, reference, metric (twice), judge (four times), class, token of three maps and their tables
    assert [string for string in short if text.count(seen(plain(string))) < 4 + 2 + 4 + 1 + 6] == []
    assert [string for string in HOSTILE if text.count(seen(plain(string))) < 4 + 4] == []
    other = crowded(tmp_path / "other")
    write_json(other / "run.json", {**files.read_json(other / "run.json"), "method": "kd"})
    build_comparison([run, other], [tmp_path / "compare.html"])
    text = visited(tab, tmp_path / "compare.html")
    assert [string for string in HOSTILE if text.count(seen(plain(string))) < 5 + 8] == []


def test_a_comparison_shows_every_string_verbatim_and_runs_nothing(tab: Browser, tmp_path: Path) -> None:
    build_comparison([hostile_sweep(tmp_path / "sweep")], [tmp_path / "compare.html"])
    text = visited(tab, tmp_path / "compare.html")
    assert [string for string in HOSTILE if seen(plain(string)) not in text] == []


def test_responses_of_a_comparison_show_every_string_verbatim_and_run_nothing(tab: Browser, tmp_path: Path) -> None:
    """Each string is a prompt, a reference and the response of three models; commands and settings contain all strings."""
    everything = " ¦ ".join(HOSTILE)
    scores = {"toy": {10: [float(i) for i in range(len(HOSTILE))]}}
    for name, command in (("sft", everything), ("kd", list(HOSTILE))):
        change = {"command": command, "config.training": {everything: name}}
        folder = write_method(tmp_path / name, scores, name, change=change)
        for part in ("", "teacher"):
            write_answers(folder / part, HOSTILE, "model")
    build_comparison([tmp_path / "sft", tmp_path / "kd"], [tmp_path / "compare.html"])
    text = visited(tab, tmp_path / "compare.html")
    assert [string for string in HOSTILE if text.count(seen(plain(string))) < 5 + 2 + 1] == []


def test_the_list_has_at_least_60_distinct_strings() -> None:
    assert len(set(HOSTILE)) == len(HOSTILE) >= 100


# --- elsewhere ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("compared")
    outputs = [folder / f"compare.{ending}" for ending in ("md", "tex", "csv")]
    return build_comparison([hostile_sweep(folder / "sweep")], outputs), folder


def test_markdown_renders_the_strings_without_elements_of_their_own(comparison: Any) -> None:
    page = (comparison[1] / "compare.md").read_text(encoding="utf-8")
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(page)
    inline = [child for token in tokens for child in token.children or ()]
    assert {token.type for token in tokens} <= {
        *(
            f"{name}_{end}"
            for name in ("heading", "paragraph", "table", "thead", "tbody", "tr", "th", "td")
            for end in ("open", "close")
        ),
        *("bullet_list_open", "bullet_list_close", "list_item_open", "list_item_close", "inline"),
    }
    assert {child.type for child in inline} <= {
        "text",
        "softbreak",
        "strong_open",
        "strong_close",
        "html_inline",
        "text_special",
    }
    assert {child.content for child in inline if child.type == "html_inline"} <= {"<u>", "</u>"}
    text = seen("".join(child.content if child.content else " " for child in inline))
    assert [string for string in HOSTILE if seen(plain(string)) not in text] == []


def test_latex_contains_no_commands_of_the_strings(comparison: Any) -> None:
    source = (comparison[1] / "compare.tex").read_text(encoding="utf-8")
    executed = "\n".join(line for line in source.split("\n") if not line.startswith("%"))
    ours = {
        "begin",
        "end",
        "centering",
        "caption",
        "label",
        "toprule",
        "midrule",
        "bottomrule",
        "textbf",
        "underline",
        "scriptsize",
        "pm",
    }
    ours |= {"textbackslash", "textasciitilde", "textasciicircum"}
    assert set(re.findall(r"\\([a-zA-Z]+)", executed)) <= ours
    assert not re.search(r"(?<!\\)[%#]|\^\^|(?<!\\)_", re.sub(r"\\label\{[^}]*\}", "", executed))
    assert executed.count("{") - executed.count("\\{") == executed.count("}") - executed.count("\\}")


def test_csv_contains_no_formulas(comparison: Any) -> None:
    text = (comparison[1] / "compare.csv").read_text(encoding="utf-8")
    for line, fields in zip(text.splitlines(), csv.reader(io.StringIO(text)), strict=True):
        assert line == ",".join(f'"{field.replace(chr(34), 2 * chr(34))}"' for field in fields)  # each field is quoted
        for part in ";".join(fields).replace("\uff1b", ";").replace("\u037e", ";").split(";"):
            is_number = re.fullmatch(r"-?[\d.e+-]+", part)
            assert is_number or not re.match(r"\s*[=+@|%-]", unicodedata.normalize("NFKC", part)), part


def test_the_terminal_receives_no_control_characters(comparison: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(terminal, "console", lambda: Console(file=out, width=20_000, color_system=None))
    terminal.print_comparison(comparison[0])
    for number, texts in enumerate(batches(PROMPTS)):
        terminal.print_summary(hostile_run(tmp_path / str(number), texts))
    seed = {"rouge_l": 1.0, "exact_match": 0.5, "length_tokens": 3, "eos_rate": 1.0}
    terminal.print_scores({"datasets": {string: {"prompts": 1, "seeds": {"10": seed}} for string in HOSTILE}})
    printed = out.getvalue()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]", printed)
    assert hidden(printed) == set()
    assert [line for line in printed.splitlines() if line.lstrip().startswith("mgsr   1")] == []
    assert [string for string in HOSTILE if seen(plain(string)) not in seen(printed)] == []
