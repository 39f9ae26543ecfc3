"""Charts of a comparison: which are drawn, and that untrusted labels are texts."""

import itertools
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from redistill.reports.comparison import Column, comparison_rows, entrants
from redistill.reports.comparison import columns as columns_of
from redistill.reports.comparison_charts import Chart, Point, forest_plot, quality_plot
from redistill.reports.folders import Measure
from redistill.reports.lineup import read_lineup
from tests.reports.fabricated import write_method

ROUGE = Measure("rouge_l", "ROUGE-L", "%", "higher")
PERPLEXITY = {"dolly": {"ppl": {"title": "perplexity", "unit": "", "better": "lower"}}}


def texts(chart: Chart) -> list[str]:
    root = ElementTree.fromstring(str(chart.svg))
    return [part.text for part in root.iter("{http://www.w3.org/2000/svg}text") if part.text]


def forest(folder, gains: dict[str, float], **written) -> tuple[Chart | None, dict[str, float]]:
    """The forest plot of methods with these gains on 8 prompts, and the differences to the first method."""
    noise = np.random.default_rng(0).normal(0, 1, (len(gains), 8))
    scores = {method: {"dolly": {10: 20 + gain + noise[i]}} for i, (method, gain) in enumerate(gains.items())}
    runs = [write_method(folder / str(i), found, method, **written) for i, (method, found) in enumerate(scores.items())]
    lineup = read_lineup(runs)
    models = entrants(lineup)
    (column,) = columns_of(models)
    rows = comparison_rows(models, [column], [model for model in models if model.role == "baseline"])
    found = {row.model: row.interval.difference for row in rows if row.role == "student" and row.interval is not None}
    return forest_plot(column, rows, lineup.baseline), found


def test_a_forest_plot_has_one_line_for_each_method_from_the_worst_to_the_best(tmp_path):
    chart, differences = forest(tmp_path, {"sft": 0.0, "kd": 9.0, "mgsr": 5.0})
    assert [text for text in texts(chart) if text in ("sft", "kd", "mgsr")] == ["mgsr", "kd"]  # from the bottom to the top
    label = ElementTree.fromstring(str(chart.svg)).attrib["aria-label"]
    for method, difference in differences.items():
        assert f"{method} {difference:+.2f} (" in label
    assert "Right of 0 is better" in chart.caption


def test_lower_is_better_reverses_the_order(tmp_path):
    chart, _ = forest(tmp_path, {"sft": 0.0, "kd": 9.0, "mgsr": 5.0}, metrics=PERPLEXITY)
    assert [text for text in texts(chart) if text in ("kd", "mgsr")] == ["kd", "mgsr"]
    assert "Left of 0 is better" in chart.caption


def test_without_a_compared_method_there_is_no_forest_plot(tmp_path):
    assert forest(tmp_path, {"sft": 0.0})[0] is None


@pytest.mark.parametrize("label", ["$x^2$ & <b>", r"\frac{1}{2} $", "語" * 60, "a\x1b[31mb\n\u202ec"])
def test_labels_are_texts_of_limited_length(label, tmp_path):
    points = [Point("sft", "baseline", 1.0, 2.0, None), Point(label, "student", 5.0, 3.0, 0.5)]
    chart = quality_plot("training seconds", ROUGE, points)
    drawn = [text for text in texts(chart) if not text.replace(".", "").isdigit()]
    assert max(map(len, drawn)) <= 22 and not any(ord(letter) < 32 for text in drawn for letter in text)
    assert forest(tmp_path, {"sft": 0.0, label: 1.0})[0] is not None


def test_a_quantity_that_is_equal_for_all_models_has_no_chart():
    points = [Point(name, "student", 5.0, 3.0, None) for name in ("a", "b")]
    assert quality_plot("parameters", ROUGE, points) is None and quality_plot("parameters", ROUGE, []) is None
    assert quality_plot("parameters", ROUGE, [*points, Point("teacher", "teacher", 9.0, 8.0, None)]) is not None


def test_labels_of_equal_points_do_not_overlap():
    points = [Point(f"method{i}", "student", 5.0, 3.0, None) for i in range(12)]
    chart = quality_plot("parameters", ROUGE, [*points, Point("teacher", "teacher", 500.0, 8.0, None)])
    root = ElementTree.fromstring(str(chart.svg))
    places: dict[bool, list[float]] = {True: [], False: []}
    for part in root.iter("{http://www.w3.org/2000/svg}text"):
        if part.text and part.text.startswith("method"):
            height = float(part.attrib.get("y") or part.attrib["transform"].split()[-1].rstrip(")").split(",")[-1])
            places["text-anchor: end" in part.attrib["style"]].append(height)
    assert len(places[True]) + len(places[False]) == 12
    for heights in places.values():
        assert all(b - a > 8 for a, b in itertools.pairwise(sorted(heights)))


def test_the_same_numbers_give_the_same_chart(tmp_path):
    first, again = (forest(tmp_path / name, {"sft": 0.0, "kd": 1.0})[0] for name in "ab")
    assert first == again


def test_a_column_without_rows_has_no_chart():
    assert forest_plot(Column("dolly", ("dolly",), (ROUGE,)), [], "sft") is None
