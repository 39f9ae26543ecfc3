"""Labels of points neither overlap nor have crossing lines."""

import itertools

import numpy as np
import pytest

from redistill.reports.labels import crosses, label_positions


@pytest.mark.parametrize("seed", range(20))
def test_labels_do_not_overlap_and_lines_do_not_cross(seed):
    """Clusters of points, as for methods of equal cost."""
    rng = np.random.default_rng(seed)
    points = [(float(x), float(y)) for x, y in zip(rng.choice([0.1, 0.45, 0.9], 9), rng.uniform(0.2, 0.8, 9), strict=True)]
    labels = label_positions(points, rng.uniform(0.05, 0.3, 9).tolist(), 0.06)
    assert [label.point for label in labels] == points
    for one, other in itertools.combinations(labels, 2):
        assert not one.box.overlaps(other.box) and not crosses(one, other)


def test_a_label_that_is_alone_is_beside_its_point():
    (left, right) = label_positions([(0.1, 0.5), (0.9, 0.5)], [0.2, 0.2], 0.06)
    assert not left.is_moved and not right.is_moved
    assert left.is_right and not right.is_right


def test_equal_points_have_different_labels():
    labels = label_positions([(0.5, 0.5)] * 4, [0.2] * 4, 0.06)
    assert not any(one.box.overlaps(other.box) for one, other in itertools.combinations(labels, 2))


@pytest.mark.parametrize("seed", range(20))
def test_labels_end_inside_the_axes(seed):
    """A label over the left end would cover the numbers of the vertical axis."""
    rng = np.random.default_rng(seed)
    points = [(float(x), float(y)) for x, y in zip(rng.uniform(0, 1, 6), rng.uniform(0.2, 0.8, 6), strict=True)]
    for label in label_positions(points, rng.uniform(0.05, 0.45, 6).tolist(), 0.06):
        assert label.box.left >= 0 and label.box.right <= 1


def test_points_close_to_each_other_have_labels_that_do_not_overlap():
    """Two pairs of methods of nearly equal cost and quality, beside the end of another label."""
    points = [(0.2, 0.2), (0.21, 0.22), (0.13, 0.25), (0.14, 0.16), (0.15, 0.16), (0.11, 0.2)]
    labels = label_positions(points, [0.11, 0.15, 0.22, 0.09, 0.09, 0.28], 0.073)
    assert not any(one.box.overlaps(other.box) for one, other in itertools.combinations(labels, 2))
