"""KID, inception score, active units and reconstruction error against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from tombola.errors import DataError
from tombola.metrics.scores import active_units, inception_score, kid, reconstruction_error


def test_kid_of_shifted_gaussians_meets_its_closed_form():
    rng = np.random.default_rng(1)
    shift = np.zeros(16)
    shift[0] = 1.5
    value, error = kid(rng.normal(size=(4000, 16)), rng.normal(size=(4000, 16)) + shift)
    assert error < 0.03
    assert abs(value - 0.5210609) < 3 * error


def test_kid_literal():
    x, y = np.array([[1.0], [2.0]]), np.array([[0.0], [3.0]])
    # k(1,2) = 27; k(0,3) = 1; k(1,0) = 1, k(1,3) = 64, k(2,0) = 1, k(2,3) = 343
    assert kid(x, y)[0] == 27 + 1 - 2 * (1 + 64 + 1 + 343) / 4


@pytest.mark.parametrize("block", [1, 3, 7, 8, 100])
def test_kid_by_blocks_is_kid_by_loops(block):
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(8, 3)), rng.normal(size=(5, 3)) + 1

    def kernel(a, b):
        return (a @ b / 3 + 1) ** 3

    def within(z):
        pairs = [kernel(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]
        return np.mean(pairs)

    expected = within(x) + within(y) - 2 * np.mean([kernel(a, b) for a in x for b in y])
    assert kid(x, y, block=block)[0] == pytest.approx(expected, rel=1e-12)


def test_kid_standard_error_is_the_spread_over_repetitions():
    rng = np.random.default_rng(3)
    found = [
        kid(rng.normal(size=(60, 4)), 1.2 * rng.normal(size=(90, 4)) + 0.8) for _ in range(400)
    ]
    values, errors = np.array(found).T
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(values.std(ddof=1), rel=0.12)


def test_kid_of_one_distribution_is_unbiased():
    rng = np.random.default_rng(4)
    values = [kid(rng.normal(size=(30, 4)), rng.normal(size=(30, 4)))[0] for _ in range(400)]
    # the biased estimate would stand near 2 (E k(x, x) - E k(x, y)) / 30, above 0.5
    assert abs(np.mean(values)) < 4 * np.std(values) / 20 < 0.1


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


def test_reconstruction_error_is_the_mean_over_pixels_of_each_image():
    images = np.zeros((2, 1, 2, 2))
    again = np.array([[[[1, 1], [1, 1]]], [[[2, 0], [0, 0]]]], dtype=float)
    np.testing.assert_array_equal(reconstruction_error(images, again), [1.0, 1.0])
    np.testing.assert_array_equal(reconstruction_error(images, 2 * again), [4.0, 4.0])


def test_bad_input_is_refused():
    two = np.zeros((2, 3))
    with pytest.raises(DataError, match="3 and 4 dimensions"):
        kid(two, np.zeros((2, 4)))
    with pytest.raises(DataError, match=r"x of shape \(1, 3\)"):
        kid(np.zeros((1, 3)), two)
    with pytest.raises(DataError, match="y hold nan"):
        kid(two, np.full((2, 3), np.nan))
    with pytest.raises(DataError, match="no probabilities"):
        inception_score([[0.5, 0.2], [1, 0]])
    with pytest.raises(DataError, match="no probabilities"):
        inception_score([[1.5, -0.5], [1, 0]])
    with pytest.raises(DataError, match="shapes must agree"):
        reconstruction_error(two, np.zeros((3, 3)))
