"""Ten questions of a manager and a researcher: each is answered by one sentence of the page, for three kinds of runs."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from redistill.reports.report import build_report
from redistill.storage import files
from tests.faults.chromium import Browser, browser
from tests.reports.browser import needs_chromium
from tests.reports.fabricated import write_json, write_lines, write_run
from tests.reports.page import Page

OLDER = Path(__file__).parent / "data" / "run-98f02f3"

MGSR = {
    "is it better": r"^mine is better than plain-sft on average: \+2\.00 ROUGE-L",
    "by how much": r"^mine is .* on average: \+2\.00 ROUGE-L \(95 % interval \+2\.00 to \+2\.00\)",
    "is that settled": r"^mine is .* on average: .* settled with 40 prompts\.$",
    "what is kept at what size and speed": r"^mine has 93 % of the teacher's quality .* at 8 % of its size, 4\.5 times its th",
    "what does training cost": r"^Training took 90 seconds, 40 updates, 25\.6 k trained tokens, 12\.8 k generated",
    "where does it fail": r"^The lowest ROUGE-L of mine is on category closed_qa of dolly: .* teacher on 40 of 40",
    "what did SCRG change": r"^SCRG corrected 51\.2 % of the sampled sequences: in the 30 logged corrections .* 1\.25 nats\.$",
    "did DAC-KL collapse": r"^DAC-KL did not collapse: .* keeps 90\.0 % of the teacher's probability",
    "what differs between the runs": r"^mine uses the method mgsr, the policy mixed \(of revised student generated text\), "
    r"the divergence "
    r"DAC-KL and a span loss; "
    r"plain-sft uses the method sft, the policy fixed, no divergence and no span loss; "
    r"1 setting of the recipes differs\. All differences$",
    "how to repeat it": r"^To repeat the run with commit abc1234: redistill run mine\.yaml$",
}
ALONE = {
    "is it better": r"^mine is better than before training on dolly: \+6\.00 ROUGE-L",
    "by how much": r"^mine is .* \(95 % interval \+6\.00 to \+6\.00\)",
    "is that settled": r"^mine is .* settled with 20 prompts\.$",
    "what is kept at what size and speed": r"^mine has 93 % of the teacher's quality \(ROUGE-L\)",
    "what does training cost": r"^The run has not recorded what its training cost",
    "where does it fail": r"^The lowest scores \(ROUGE-L\) of mine are those of the prompts dolly:\d+ "
    r"\([\d.]+\), .* and .* of dolly; ",
    "what did SCRG change": r"^No text of the student was corrected: the run has no corrections by SCRG",
    "did DAC-KL collapse": r"^DAC-KL collapsed: .* 5\.0 % of the mass outside the arg max; .* for 95\.0 %",
    "what differs between the runs": r"^No baseline was given, so no settings are compared",
    "how to repeat it": r"^The run has not recorded its command",
}
EARLIER = {
    "is it better": r"^tiny may be \w+ than before training on average",
    "by how much": r"^tiny may be .* on average: .* \(95 % interval .* to .*\)",
    "is that settled": r"^tiny may be .* on average: .* not settled with 6 prompts; about [\d,]+ prompts",
    "what is kept at what size and speed": r"^tiny has [\d,]+ % of the teacher's quality .* at 100 % of its size and [\d.]+",
    "what does training cost": r"^Training took 1 second, 3 updates, 320 trained tokens, 217 generated tokens",
    "where does it fail": r"^The lowest ROUGE-L of tiny is on \w+: .* on 3 prompts; .* on \d of 6 prompts\.$",
    "what did SCRG change": r"^SCRG corrected [\d.]+ % of the sampled sequences: in the \d+ logged corrections",
    "did DAC-KL collapse": r"^DAC-KL did not collapse: .* 100\.0 % of the .* mass; .* for 0\.0 %",
    "what differs between the runs": r"^No baseline was given",
    "how to repeat it": r"^To repeat the run with redistill 0\.1\.0, commit 98f02f3c12e2: redistill run tiny",
}


EXPECTED = {"mgsr": MGSR, "alone": ALONE, "earlier": EARLIER}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("questions")
    mine = write_run(folder / "mine", "mine", updates=40)
    baseline = write_run(folder / "sft", "plain-sft", role="baseline")
    source = {"kind": "mixed", "source": {"kind": "revised", "source": {"kind": "student_generated"}}}
    parts = {
        mine: {"policy": source, "objective": {"divergence": {"kind": "dac_kl"}, "span_weight": 1.0}},
        baseline: {"policy": {"kind": "fixed"}, "objective": {"divergence": None, "span_weight": 0.0}},
    }
    for path, resolved in parts.items():
        described = files.read_json(path / "run.json")
        write_json(path / "run.json", {**described, "method": described["config"]["method"], "resolved": resolved})
    alone = write_run(folder / "alone", "mine")
    described = files.read_json(alone / "run.json")
    write_json(alone / "run.json", {key: value for key, value in described.items() if key not in ("cost", "command")})
    (alone / "revisions.jsonl").unlink()
    collapsed = {"kept_mass": 0.6, "recovered": 0.05, "target_only": 0.95}
    write_lines(alone / "metrics.jsonl", [{"kind": "train", "step": step, **collapsed} for step in range(1, 21)])
    for part in (alone, alone / "teacher", alone / "before"):
        scores = files.read_json(part / "scores.json")
        write_json(part / "scores.json", {**scores, "datasets": {"dolly": scores["datasets"]["dolly"]}})
        for path in (part / "responses").glob("*.jsonl"):
            lines = [{key: value for key, value in line.items() if key != "category"} for line in files.read_lines(path)]
            write_lines(path, lines)
    shutil.copytree(OLDER, folder / "tiny")
    return {
        "mgsr": build_report(mine, [baseline]),
        "alone": build_report(alone),
        "earlier": build_report(folder / "tiny"),
    }


@pytest.fixture(scope="module")
def pages(built: dict[str, Path]) -> dict[str, Page]:
    return {name: Page(path.read_text(encoding="utf-8")) for name, path in built.items()}


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize(
    ("run", "question", "pattern"),
    [(run, *item) for run, expected in EXPECTED.items() for item in expected.items()],
)
def test_a_question_is_answered_by_one_sentence(run, question, pattern, pages):
    assert pages[run].answer(pattern)


@needs_chromium
@pytest.mark.parametrize("run", EXPECTED)
def test_the_answers_are_visible_when_the_page_is_opened(run, built, tab):
    """No answer is in a folded part of the page."""
    tab.open(built[run])
    tab.run("document.body.insertAdjacentHTML('beforeend', '<details><summary>More</summary><p>a folded text</p></details>')")
    shown = tab.run("document.body.innerText")
    assert "a folded text" not in shown
    lines = {" ".join(line.split()) for line in shown.splitlines()}
    missing = [question for question, pattern in EXPECTED[run].items() if not any(re.search(pattern, line) for line in lines)]
    assert missing == []


def test_what_a_run_of_an_earlier_version_lacks_is_named(pages):
    missing = pages["earlier"].answer("^Missing in the run folder")
    for name in (
        "categories of test rows (responses/*.jsonl)",
        "latency (scores.json)",
        "peak memory of answers (scores.json)",
        "recovered mass of DAC-KL (metrics.jsonl)",
        "windows of DAC-KL (windows.jsonl",
        "divergences by token of answers (positions.jsonl",
        "divergences by token of corrections (revision-positions.jsonl",
    ):
        assert name in missing
    assert "cost" not in missing and "scores of the teacher" not in missing
