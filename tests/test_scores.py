"""Inception score and active units against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from tombola.errors import DataError
from tombola.metrics.scores import active_units, inception_score


@pytest.mark.parametrize("classes", [1, 4, 10])
def test_inception_score_of_uniform_one_hot_is_the_number_of_classes(classes):
    one_hot = np.tile(np.eye(classes), (5, 1))
    assert inception_score(one_hot) == pytest.approx(classes, rel=1e-12)


def test_inception_score_of_equal_rows_is_one():
    assert inception_score(np.full((6, 3), 1 / 3)) == pytest.approx(1, rel=1e-12)


def test_inception_score_literal():
    # KL((1, 0) || (3/4, 1/4)) = log 4/3; KL((1/2, 1/2) || ...) = log(2/3)/2 + log(2)/2
    expected = np.exp((np.log(4 / 3) + np.log(4 / 3) / 2) / 2)
    assert inception_score([[1, 0], [0.5, 0.5]]) == pytest.approx(expected, rel=1e-12)


def test_active_units_counts_variances_above_the_threshold():
    means = np.zeros((100, 4))
    means[::2, 0], means[1::2, 0] = 1, -1  # variance 1
    means[::2, 1], means[1::2, 1] = 0.11, -0.11  # variance 0.0121
    means[::2, 2], means[1::2, 2] = 0.09, -0.09  # variance 0.0081
    means[:, 3] = 7  # far from zero, yet constant
    assert active_units(means) == 2
    assert active_units(means, threshold=0.005) == 3


def test_bad_input_is_refused():
    with pytest.raises(DataError, match="means hold nan"):
        active_units(np.full((2, 3), np.nan))
    with pytest.raises(DataError, match="no probabilities"):
        inception_score([[0.5, 0.2], [1, 0]])
    with pytest.raises(DataError, match="no probabilities"):
        inception_score([[1.5, -0.5], [1, 0]])
