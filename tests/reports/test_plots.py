"""Charts of the metrics, and their reproducibility."""

import xml.etree.ElementTree as ElementTree

import pytest

from redistill.reports.drawing import INK
from redistill.reports.logs import read_log
from redistill.reports.plots import TRAINING_NAMES, Panel, _mass_parts, panels
from redistill.reports.thinning import MAX_POINTS
from tests.reports.fabricated import metrics


def plotted(lines: list[dict]) -> list[Panel]:
    return panels(read_log(lines, TRAINING_NAMES))


@pytest.fixture(scope="module")
def charts() -> list[Panel]:
    return plotted(metrics(10))


def test_each_logged_quantity_has_one_chart(charts):
    groups = [panel.group for panel in charts]
    assert groups.count("training") == 9 and groups.count("validation") == 3 and groups.count("clipping") == 3
    only_loss = [{"kind": "train", "step": 1, "loss": 2.0}, {"kind": "train", "step": 2, "loss": None}]
    assert [panel.title for panel in plotted(only_loss)] == ["Loss, weighted sum of its terms"]
    assert plotted([]) == [] and plotted([{"kind": "train"}, {"kind": "other", "step": 1, "loss": 1.0}]) == []


def test_curves_of_the_baseline_are_overlaid_where_it_has_the_same_quantity():
    log, other = (read_log(lines, TRAINING_NAMES) for lines in (metrics(10), [{"kind": "train", "step": 1, "loss": 2.0}]))
    charts = {panel.title: panel.svg for panel in panels(log, (), ("mine", "<sft>", other))}
    assert "&lt;sft&gt;" in charts["Loss, weighted sum of its terms"] and "mine" in charts["Loss, weighted sum of its terms"]
    assert "&lt;sft&gt;" not in charts["Learning rate"]
    own = {panel.title: panel.svg for panel in panels(log)}
    for title in ("Loss, weighted sum of its terms", "Learning rate"):
        dashes = charts[title].count("stroke-dasharray") - own[title].count("stroke-dasharray")
        assert (dashes > 0) == (title != "Learning rate")  # the baseline's curve is dashed


def test_the_window_of_the_baseline_is_overlaid_and_its_origins_have_a_chart():
    """Stacked areas cannot be overlaid, so that they are beside one another."""
    log, other = (read_log(metrics(10), TRAINING_NAMES) for _ in range(2))
    own, both = (panels(log, (), baseline) for baseline in (None, ("mine", "other", other)))
    added = {panel.title for panel in both} - {panel.title for panel in own}
    assert added == {"Origin of sequences, fraction, other"}
    found = {panel.title: panel.svg for panel in both}
    for title, label in (
        ("Mass that DAC-KL keeps, fraction", "kept mass, other"),
        ("Bounds u and l of the kept probabilities", "u, other"),
        ("Classes kept per token", "kept classes, other"),
    ):
        assert label in found[title] and found[title].count("stroke-dasharray") > 0
        assert ", other" not in {panel.title: panel.svg for panel in own}[title]
    alone = panels(read_log(metrics(10), TRAINING_NAMES), (), ("mine", "sft", read_log([], TRAINING_NAMES)))
    assert [panel.title for panel in alone] == [panel.title for panel in own]


def test_the_bounds_of_the_window_are_plotted_on_a_log_scale_unless_one_is_zero():
    def bounds(lower: float) -> str:
        lines = [{"kind": "train", "step": step, "upper": 0.9, "lower": lower} for step in (1, 2)]
        return next(panel.svg for panel in plotted(lines) if panel.title.startswith("Bounds"))

    assert "10^{-3}" in bounds(1e-3) and "10^{" not in bounds(0.0)


def test_the_same_numbers_give_the_same_bytes(charts):
    assert plotted(metrics(10)) == charts


def test_a_chart_is_one_well_formed_element_that_inherits_its_colour(charts):
    for panel in charts:
        root = ElementTree.fromstring(panel.svg)
        assert root.tag.endswith("svg") and "width" not in root.attrib and "viewBox" in root.attrib
        assert INK not in panel.svg and "currentColor" in panel.svg
        assert "<metadata" not in panel.svg and "<style" not in panel.svg


def test_the_size_of_a_chart_does_not_grow_with_the_run():
    def loss_svg(updates: int) -> str:
        lines = [{"kind": "train", "step": step, "loss": 2 + (step % 7) / 10} for step in range(updates)]
        return plotted(lines)[0].svg

    assert len(loss_svg(20 * MAX_POINTS)) < 3 * len(loss_svg(MAX_POINTS))


def test_an_origin_that_resembles_mathtext_is_plotted_verbatim():
    lines = [{"kind": "train", "step": step, "origin": {"$\\frac{": 1, "<b>": 2}} for step in (1, 2)]
    (panel,) = plotted(lines)
    assert "$\\frac{" in panel.svg and "&lt;b&gt;" in panel.svg and "<b>" not in panel.svg


def test_the_parts_of_the_teachers_mass_sum_to_1_and_need_a_kept_arg_max():
    def lines(top: float) -> list[dict]:
        return [
            {"kind": "train", "step": step, "kept_mass": 0.75, "top_mass": top, "dropped_above": 0.125} for step in (1, 2, 3)
        ]

    parts = dict(_mass_parts(read_log(lines(0.5), TRAINING_NAMES).train))
    assert {label: bins.means.tolist() for label, bins in parts.items()} == {
        "arg max": [0.5] * 3,
        "other kept": [0.25] * 3,
        "dropped above": [0.125] * 3,
        "dropped below": [0.125] * 3,
    }
    assert _mass_parts(read_log(lines(0.8), TRAINING_NAMES).train) == []
    dropping = [{**line, "kept_top_mass": 0.25} for line in lines(0.8)]
    parts = dict(_mass_parts(read_log(dropping, TRAINING_NAMES).train))
    assert [(label, float(bins.means[0])) for label, bins in parts.items()] == [
        ("arg max where kept", 0.25),
        ("other kept", 0.5),
        ("dropped above", 0.125),
        ("dropped below", 0.125),
    ]
    assert [panel.title for panel in plotted(lines(0.5))][-1].startswith("Kept and whole distribution")
