"""The result of a comparison in words."""

from pathlib import Path

import numpy as np
import pytest

from redistill.reports.compare import build_comparison
from redistill.reports.measured import read_measured
from redistill.reports.ranking import conclusions
from redistill.reports.report import build_report
from redistill.storage import files
from tests.reports.fabricated import write_method, write_sweep
from tests.reports.page import Page

PERPLEXITY = {"dolly": {"ppl": {"title": "perplexity", "unit": "", "better": "lower"}}}
EXACT = {"dolly": {"exact": {"title": "exact match", "unit": "fraction", "better": "higher"}}}


def sentences(folders: list[Path], **options) -> list[str]:
    (found,) = conclusions(read_measured(folders, **options))
    return found


def constant(folder: Path, method: str, value: float, **written) -> Path:
    return write_method(folder / method, {"dolly": {10: [value, value, value]}}, method, **written)


def test_a_method_that_leads_by_a_wide_margin_is_named_with_its_settled_differences(tmp_path):
    found = sentences([write_sweep(tmp_path, {"sft": 0.0, "kd": 4.0, "mgsr": 20.0}, prompts=30)])
    assert found[0].startswith("mgsr has the highest ROUGE-L of 3 methods (") and found[0].endswith(
        ", averaged over 2 data sets), and its lead over kd, the second best, is settled."
    )
    assert found[1].startswith("mgsr is better than sft") and "settled with 60 prompts and 3 training seeds" in found[1]
    assert found[2].startswith("The smallest true difference between mgsr and sft")
    assert found[3].startswith("Against the second best method: mgsr is better than kd")
    assert (
        found[4].startswith("mgsr has ") and "of its size, 4.5 times its throughput in batches and 0.30 times its" in found[4]
    )


def test_speeds_are_divided_by_those_of_the_teacher_in_the_same_run(tmp_path):
    """The machine is three times as fast in one run as in the other; the ratios of a run are those of its report."""
    runs = [constant(tmp_path, method, value) for method, value in (("sft", 20.0), ("kd", 25.0))]
    for path in (runs[1] / "scores.json", runs[1] / "teacher" / "scores.json"):
        scores = files.read_json(path)
        latency = {name: value / 3 for name, value in scores["latency"].items()}
        files.write_json(path, {**scores, "tokens_per_s": 3 * scores["tokens_per_s"], "latency": latency})
    sentence = sentences(runs)[-2]
    assert "4.5 times its throughput in batches and 0.30 times its latency" in sentence
    report = Page(build_report(runs[1]).read_text(encoding="utf-8"))
    ratios = sentence[sentence.index(" at ") :]
    assert report.answer("throughput in batches and").endswith(ratios)
    build_comparison(runs, [tmp_path / "compare.html"])
    tables = [report, Page((tmp_path / "compare.html").read_text(encoding="utf-8"))]
    cells = [table.table("latency p50, s", "peak memory") for table in tables]
    assert cells[0]["kd-10"]["tokens/s"] == "1.35 k (4.50×)" and cells[1]["kd"]["tokens/s"] == "1.35 k (4.50× of 300)"
    assert cells[1]["kd"]["latency p50, s"] == "0.250 (0.30× of 0.833)" and cells[1]["kd"]["parameters"] == "120 M (0.08×)"
    assert cells[1]["sft"]["tokens/s"] == "450 (4.50× of 100)" and cells[1]["teacher"]["tokens/s"] == "100"


def test_a_small_lead_is_not_settled_and_has_the_sample_that_would_settle_it(tmp_path):
    noise = np.random.default_rng(3).normal(0, 5, (2, 20))
    runs = [
        write_method(tmp_path / method, {"dolly": {10: 30 + gain + row}}, method)
        for (method, gain), row in zip((("sft", 0.0), ("kd", 2.0)), noise, strict=True)
    ]
    found = sentences(runs)
    assert found[0].endswith(", on dolly), but its lead over sft, the second best, is not settled.")
    assert "not settled with 20 prompts; about" in found[1] and "prompts would settle it" in found[1]
    assert found[2].startswith("This is about the trained students: kd and sft have fewer than two training seeds in common.")


CHANCE = "the second best, is not settled (p = 0.250)."  # 3 prompts


def test_the_order_of_the_methods_is_that_of_their_scores_and_directions(tmp_path):
    low = [constant(tmp_path, method, value, metrics=PERPLEXITY) for method, value in (("sft", 30.0), ("kd", 20.0))]
    assert (
        sentences(low)[0]
        == f"kd has the lowest (best) perplexity of 2 methods (20.00, on dolly), but its lead over sft, {CHANCE}"
    )
    high = [constant(tmp_path, method, value, metrics=EXACT) for method, value in (("gkd", 0.25), ("mgsr", 0.5))]
    assert (
        sentences(high)[0]
        == f"mgsr has the highest exact match of 2 methods (50.0 %, on dolly), but its lead over gkd, {CHANCE}"
    )


def test_a_baseline_that_is_best_is_compared_with_the_closest_method(tmp_path):
    runs = [constant(tmp_path, method, value) for method, value in (("sft", 30.0), ("kd", 20.0), ("gkd", 25.0))]
    found = sentences(runs)
    assert found[0].startswith("sft has the highest") and found[0].endswith(
        "over gkd, the second best, is not settled (p = 0.500 after Holm's correction for several methods)."
    )
    assert found[1].startswith("gkd may be worse than sft")
    assert not any("Against the second best" in sentence for sentence in found)


def test_a_single_method_is_not_compared(tmp_path):
    found = sentences([constant(tmp_path, "sft", 30.0)])
    assert found[0] == "sft is the only method: ROUGE-L 30.00, on dolly." and not any("than" in each for each in found)


def test_methods_with_different_prompts_are_not_compared(tmp_path):
    found = sentences([constant(tmp_path, "sft", 30.0), constant(tmp_path, "kd", 40.0, text="other")])
    assert found[0].endswith("but its lead over sft, the second best, is not tested.")
    assert "kd is not compared with sft" in found[1] and "different prompts" in found[1]


@pytest.mark.parametrize("count", [2, 12])
def test_a_difference_that_holms_correction_does_not_confirm_is_reported(count, tmp_path):
    """10 wins of 12 prompts by equal amounts: p = 0.039 alone, more with the correction for 11 methods."""
    gains = {"sft": 0.0, **{f"m{i:02}": float(i == 1) for i in range(1, count)}}
    signs = np.array([1.0] * 10 + [-1.0] * 2)
    runs = [write_method(tmp_path / method, {"dolly": {10: 30 + gain * signs}}, method) for method, gain in gains.items()]
    found = " ".join(sentences(runs))
    assert ("its lead over sft, the second best, is not settled (p = 0.4" in found) == (count == 12)
    assert ("m01 is better than sft" in found) == (count == 2)
    assert ("the interval excludes 0, but p = 0.4" in found) == (count == 12)
