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
