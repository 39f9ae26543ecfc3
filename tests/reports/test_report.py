"""The report of a synthetic run: values, escaping of hostile text, and missing files."""

import base64
import hashlib
import html
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import redistill.reports
from redistill.errors import CheckpointError
from redistill.reports.report import build_report, summary_table
from redistill.storage import files
from redistill.storage.redaction import plain
from tests.reports.fabricated import GAIN, PROMPTS, write_json, write_lines, write_run

HOSTILE = (
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    "<img src=x onerror=alert(3)>",
    "<svg onload=alert(4)>",
    "\" onmouseover='alert(5)' x=\"",
    "'><iframe src=http://evil.example></iframe>",
    "</style><style>@import url(http://evil.example/a.css)</style>",
    "</pre></td></table><base href=http://evil.example>",
    "<a href=javascript:alert(6)>link</a>",
    "{{ 7 * 7 }}{% raw %}",
    "+ADw-script+AD4-alert(7)+ADw-/script+AD4-",
    "<!-- \u2028 --><meta http-equiv=refresh content='0;url=http://evil.example'>",
    "&lt;script&gt; &#60;b&#62;",
    "]]><x:script xmlns:x='http://www.w3.org/1999/xhtml'>alert(8)</x:script>",
)


def test_the_summary_has_means_deviations_and_paired_differences(run_folder, baseline_folder):
    table = summary_table(run_folder, [baseline_folder])
    assert [(row["dataset"], row["model"]) for row in table] == [
        (dataset, model) for dataset in ("dolly", "vicuna") for model in ("teacher", "before training", "plain-sft", "mine")
    ]
    means = [20 + GAIN["student"] + 5 * np.random.default_rng([0, seed]).standard_normal(PROMPTS).mean() for seed in (10, 20)]
    mine = table[3]
    assert mine["rouge_l"] == pytest.approx(np.mean(means)) and mine["rouge_l_sd"] == pytest.approx(np.std(means, ddof=1))
    # Every prompt's score differs by the same amount, so the interval has no width.
    gain = GAIN["student"] - GAIN["baseline"]
    assert (mine["difference"], mine["lower"], mine["upper"]) == pytest.approx((gain, gain, gain))
    assert mine["versus"] == "plain-sft" and mine["num_prompts"] == PROMPTS and mine["num_seeds"] == 2
    assert (mine["cross_entropy"], mine["kl"], mine["distinct_2"]) == (2.345, 0.456, 0.812)
    assert table[2]["versus"] is None and table[2]["difference"] is None and table[0]["kl"] is None


@pytest.mark.parametrize(("speed", "shown"), [(300.0, "2.0×|faster"), (75.0, "2.0×|slower"), (151.0, None), (0.0, None)])
def test_the_speed_of_a_student_is_compared_with_that_of_the_teacher(run_folder, speed, shown):
    for name, value in (("scores.json", speed), ("teacher/scores.json", 150.0)):
        scores = files.read_json(run_folder / name)
        files.write_json(run_folder / name, {**scores, "tokens_per_s": value})
    page = build_report(run_folder).read_text(encoding="utf-8")
    found = re.search(r"([\d.]+×)\D*?(faster|slower) than the teacher", page)
    assert (found and "|".join(found.groups())) == shown
    assert ("the throughput of the teacher" in page) == (speed == 151)


def test_without_a_baseline_the_difference_is_to_the_student_before(run_folder):
    mine = summary_table(run_folder)[2]
    assert mine["versus"] == "before training" and mine["difference"] == pytest.approx(GAIN["student"] - GAIN["before"])


def test_runs_with_equal_names_have_different_labels(tmp_path):
    """The labels are the methods if these differ, else the folders; a run with another name keeps its name."""
    run, same, kd, other = (
        write_run(tmp_path / folder, name, role=role)
        for folder, name, role in (
            ("a", "mine", "student"),
            ("b", "mine", "baseline"),
            ("c", "mine", "baseline"),
            ("d", "d", "baseline"),
        )
    )
    write_json(kd / "run.json", files.read_json(kd / "run.json") | {"method": "kd"})

    def labels(*baselines):
        return [row["model"] for row in summary_table(run, baselines) if row["dataset"] == "dolly"][2:]

    assert labels(other) == ["d", "mine"]
    assert labels(kd) == ["kd", "mgsr"]
    assert labels(same) == ["b", "a"]
    assert labels(same, kd, other) == ["b", "kd", "d", "a"]
    page = build_report(run, [kd]).read_text(encoding="utf-8")
    assert ">kd<" in page and ">mgsr<" in page and "kd answers 0" not in page


def test_the_page_shows_values_responses_corrections_curves_and_the_command(tmp_path, baseline_folder):
    run_folder = write_run(tmp_path / "run", "mine", updates=20)
    page = build_report(run_folder, [baseline_folder]).read_text(encoding="utf-8")
    for row in summary_table(run_folder, [baseline_folder]):
        assert f"{row['rouge_l']:.2f}" in page
    assert "+2.00" in page and "12.5×" in page and "4.5×" in page
    assert page.count('<div class="prompt text">') == 2 * PROMPTS and page.count("student draft") == 8
    assert "<del> wrong</del>" in page and "<ins> right</ins>" in page
    assert page.count("<figure") == 17 and "redistill run mine.yaml" in page and "updates: 40" in page
    for who in ("teacher", "before", "baseline", "student"):
        assert re.search(rf"{who} answers \d+ with seed 10\.", page)


TEMPLATES = Path(redistill.reports.__file__).parent / "templates"
SCRIPTS = [(TEMPLATES / name).read_text(encoding="utf-8") for name in ("responses.js", "tokens.js")]
SECTIONS = ("verdict", "results", "size", "answers", "corrections", "curves", "cost", "data", "repeat")


def test_every_section_has_a_heading_and_a_link(tmp_path):
    page = build_report(write_run(tmp_path / "run", "mine", updates=20)).read_text(encoding="utf-8")
    assert tuple(re.findall(r'<h2 id="([^"]*)"', page)) == tuple(re.findall(r'<a href="#([^"]*)"', page)) == SECTIONS


def test_the_report_is_deterministic(run_folder, baseline_folder, tmp_path):
    first = build_report(run_folder, [baseline_folder], tmp_path / "a.html").read_bytes()
    assert first == build_report(run_folder, [baseline_folder], tmp_path / "b.html").read_bytes()
    assert not (run_folder / "report.html").exists()


def without_scripts(page: str) -> str:
    """A report without its own scripts, each of which it contains once."""
    for script in SCRIPTS:
        assert page.count(f"<script>{script}</script>") == 1
        page = page.replace(f"<script>{script}</script>", "")
    return page


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_and_not_interpreted(text, tmp_path):
    page = build_report(write_run(tmp_path / "run", "mine", text=text)).read_text(encoding="utf-8")
    assert " ".join(plain(text).split()) in " ".join(html.unescape(page).split())
    page = without_scripts(page)
    tags = set(re.findall(r"<\s*/?([a-zA-Z:]+)", page))
    assert not tags & {"script", "img", "iframe", "base", "x:script", "object", "link", "form", "b:script"}
    assert page.count("<style>") == 1 and len(re.findall(r"<meta[^>]+http-equiv", page)) == 1
    attributes = " ".join(re.findall(r"<[a-zA-Z][^<>]*>", page))
    assert not re.search(r"\son[a-z]+\s*=", attributes) and "javascript:" not in attributes


def test_the_policy_of_the_page_forbids_all_but_its_own_script_styles_and_images(tmp_path):
    page = build_report(write_run(tmp_path / "run", "mine")).read_text(encoding="utf-8")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1]
    assert set(policy.split("; ")) == {
        "default-src 'none'",
        "script-src "
        + " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(each.encode()).digest()).decode()}'" for each in SCRIPTS),
        "style-src 'unsafe-inline'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    }


def test_the_page_loads_no_resources(tmp_path):
    page = build_report(write_run(tmp_path / "run", "mine", updates=3)).read_text(encoding="utf-8")
    assert "<svg" in page
    assert "default-src 'none'" in page
    links = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)""", page)
    assert links and all(link.startswith("#") for link in links)
    assert not re.search(r"url\((?!#)", page) and "@import" not in page


def test_control_characters_are_removed_from_the_page_and_the_summary(tmp_path):
    folder = write_run(tmp_path / "run", "mine", text="\x1b[31mred\x1b]0;title\x07\x00\x9b1m\u202e\ud83d")
    page = build_report(folder).read_text(encoding="utf-8")
    assert "red" in page and not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", page)
    assert [row["model"] for row in summary_table(folder)][-1].startswith("minered")


def test_plain_keeps_text_newlines_and_tabs():
    assert plain("a\tb\nç 中 😀 é") == "a\tb\nç 中 😀 é"
    assert plain("\x1b[1;31mred\x1b[0m \x1b]8;;http://x\x1b\\link\x1b]8;;\x07 \x1bc\r\x08end") == "red link cend"
    assert plain("\x1b]never closed, and kept") == "]never closed, and kept"


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ("scores.json", "scores of this run"),
        ("teacher", "scores of the teacher"),
        ("before", "before training (before/scores.json)"),
        ("metrics.jsonl", "training metrics"),
        ("revisions.jsonl", "corrections (revisions.jsonl"),
    ],
)
def test_a_missing_file_is_named_and_the_rest_is_shown(removed, message, run_folder):
    path = run_folder / removed
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    page = build_report(run_folder).read_text(encoding="utf-8")
    assert message in page and "Reproduce this run" in page


def test_a_run_that_has_just_started_has_a_report(tmp_path):
    write_json(tmp_path / "new" / "run.json", {"schema": 1, "status": "running", "config": None, "data": [], "models": "?"})
    page = build_report(tmp_path / "new").read_text(encoding="utf-8")
    assert "running" in page and "<h1>new</h1>" in page and summary_table(tmp_path / "new") == []


def test_responses_with_missing_keys_are_shown_partially(run_folder):
    write_lines(run_folder / "responses" / "dolly-seed10.jsonl", [{"id": "dolly:0"}, {"prompt": "no id"}, "no object"])
    assert "dolly:0" in build_report(run_folder).read_text(encoding="utf-8")
    mine = next(row for row in summary_table(run_folder) if row["model"] == "mine")
    assert mine["difference"] is None and mine["note"] == "different prompts"


@pytest.mark.parametrize("references", [-9223372036854775808, "one", {"a": 1}, True, None, [7, None]])
def test_references_of_another_type_do_not_stop_the_report(run_folder, references):
    for path in (run_folder / "responses").glob("*.jsonl"):
        lines = [{**json.loads(line), "references": references} for line in path.read_text().splitlines()]
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert "Responses by model" in build_report(run_folder).read_text(encoding="utf-8")


def test_a_folder_that_is_not_a_run_is_rejected_in_one_line(run_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    newer = write_run(tmp_path / "newer", "newer")
    write_json(newer / "scores.json", {"schema": 3})
    damaged = write_run(tmp_path / "damaged", "damaged")
    (damaged / "run.json").write_text("{")
    torn = write_run(tmp_path / "torn", "torn")
    (torn / "metrics.jsonl").write_text('{"kind"\n{}\n')
    for folder in (tmp_path / "nowhere", tmp_path / "empty", newer, damaged, torn):
        with pytest.raises(CheckpointError) as caught:
            build_report(folder) if folder is torn else build_report(run_folder, [folder])  # no log of a baseline is read
        assert folder.name in str(caught.value) and "\n" not in str(caught.value)
