"""The Frechet distance against closed forms, and its two ways against each other."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg

from tombola.errors import DataError
from tombola.metrics.frechet import BLOCK, Gaussian, frechet_distance, triangular_root

RNG = np.random.default_rng(0)


def gaussian(mean, covariance) -> Gaussian:
    return Gaussian.from_moments(1000, mean, covariance)


def brute_force(x, y) -> float:
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(a @ b)
    return float(np.square(x.mean(0) - y.mean(0)).sum() + np.trace(a + b - 2 * root.real))


def psd(dimensions: int, rank: int) -> np.ndarray:
    factor = np.random.default_rng(rank).normal(size=(rank, dimensions))
    return factor.T @ factor


def test_equal_covariances_give_the_squared_offset():
    covariance = psd(3, 5)
    found = frechet_distance(gaussian([0, 0, 0], covariance), gaussian([1, -2, 3], covariance))
    assert found == pytest.approx(14, abs=1e-10)


def test_diagonal_covariances():
    a, b = np.diag([1.0, 4.0, 9.0]), np.diag([4.0, 25.0, 0.0])
    # offset 0.25; (1 - 2)^2 + (2 - 5)^2 + (3 - 0)^2 = 19
    found = frechet_distance(gaussian([0.5, 0, 0], a), gaussian([0, 0, 0], b))
    assert found == pytest.approx(19.25, abs=1e-9)


def test_two_by_two_literal():
    a, b = [[2, 0.5], [0.5, 1]], [[1, -0.3], [-0.3, 3]]
    expected = pytest.approx(0.929311854968, abs=1e-11)
    assert frechet_distance(gaussian([0, 0], a), gaussian([0, 0], b)) == expected
    assert frechet_distance(gaussian([0, 0], b), gaussian([0, 0], a)) == expected


@pytest.mark.parametrize("rank", [6, 3])
def test_transported_covariance_also_of_less_than_full_rank(rank):
    a, m = psd(6, rank), psd(6, 9) / 9
    expected = np.trace((np.eye(6) - m) @ a @ (np.eye(6) - m))
    found = frechet_distance(gaussian(np.zeros(6), a), gaussian(np.zeros(6), m @ a @ m))
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("n_reference", "n_sample"), [(400, 300), (400, 9), (9, 300), (9, 11), (20, 20)]
)
def test_every_form_agrees_with_the_matrix_square_root(n_reference, n_sample):
    x = RNG.normal(size=(n_reference, 20)) @ RNG.normal(size=(20, 20)) + 3
    y = RNG.normal(size=(n_sample, 20)) * 2 - 1
    found = frechet_distance(Gaussian.of(x), Gaussian.of(y))
    assert found == pytest.approx(brute_force(x, y), rel=1e-6)


def test_large_matrices_take_the_symmetric_congruence_to_the_same_end(monkeypatch):
    x, y = RNG.normal(size=(90, 7)) @ RNG.normal(size=(7, 7)), RNG.normal(size=(70, 7)) + 1
    calls = []
    dsygst = scipy.linalg.lapack.dsygst
    monkeypatch.setattr("tombola.metrics.frechet.LARGE", 7)
    monkeypatch.setattr(
        "tombola.metrics.frechet.lapack.dsygst", lambda *a, **k: calls.append(1) or dsygst(*a, **k)
    )
    found = frechet_distance(Gaussian.of(x), Gaussian.of(y))
    assert calls
    assert found == pytest.approx(brute_force(x, y), rel=1e-9)


def test_gram_form_is_used_below_the_dimensions_and_left_above():
    stream = Gaussian()
    stream.update(RNG.normal(size=(9, 10)))
    assert stream._factor() is not None
    stream.update(RNG.normal(size=(1, 10)))
    assert stream._factor() is None


def test_a_stream_gives_the_moments_of_the_whole():
    features = RNG.normal(size=(3 * BLOCK + 7, 5)) * [1, 2, 3, 4, 5] + 50
    stream = Gaussian()
    for start in range(0, len(features), 97):
        stream.update(features[start : start + 97])
    assert stream.n == len(features)
    np.testing.assert_allclose(stream.mean, features.mean(0), rtol=1e-13)
    np.testing.assert_allclose(stream.covariance, np.cov(features, rowvar=False), rtol=1e-11)
    few = Gaussian.of(features[:4])
    np.testing.assert_allclose(few.covariance, np.cov(features[:4], rowvar=False), rtol=1e-10)


def test_features_far_from_zero_keep_their_covariance():
    # unshifted float64 sums of squares around 1e16 would lose all of a variance of 1
    features = RNG.integers(-3, 4, size=(2000, 3)) + 1e8
    expected = np.cov(features - 1e8, rowvar=False)
    np.testing.assert_allclose(Gaussian.of(features).covariance, expected, rtol=1e-9)


def test_float32_features_are_summed_in_float64():
    features = (RNG.normal(size=(5000, 4)) + 100).astype(np.float32)
    expected = np.cov(features.astype(np.float64), rowvar=False)
    np.testing.assert_allclose(Gaussian.of(features).covariance, expected, rtol=1e-10)


def test_a_set_is_at_zero_from_itself_and_never_below():
    x = Gaussian.of(RNG.normal(size=(200, 8)))
    assert 0 <= frechet_distance(x, x) < 1e-9


def test_the_cached_root_is_the_one_used():
    a, b = Gaussian.of(RNG.normal(size=(50, 4))), Gaussian.of(RNG.normal(size=(50, 4)))
    plain = frechet_distance(a, b)
    assert a.root() is a.root()
    assert frechet_distance(a, b, root=a.root()) == plain
    assert frechet_distance(a, b, root=2 * a.root()) < plain


def test_more_features_drop_the_cached_root_and_covariance():
    x = RNG.normal(size=(60, 4))
    stream = Gaussian.of(x[:30])
    stream.root()
    stream.update(5 * x[30:])
    whole = Gaussian.of(np.concatenate([x[:30], 5 * x[30:]]))
    np.testing.assert_allclose(stream.root() @ stream.root().T, whole.covariance, rtol=1e-10)


@pytest.mark.parametrize("rank", [5, 2])
def test_triangular_root(rank):
    matrix = psd(5, rank)
    root = triangular_root(matrix)
    np.testing.assert_allclose(root, np.tril(root))
    np.testing.assert_allclose(root @ root.T, matrix, atol=1e-12)


def test_bad_features_are_refused():
    good = Gaussian.of(np.zeros((3, 2)))
    with pytest.raises(DataError, match=r"shape \(3, 5\); give them as \(N, 2\)"):
        good.update(np.zeros((3, 5)))
    with pytest.raises(DataError, match=r"shape \(4,\)"):
        good.update(np.zeros(4))
    with pytest.raises(DataError, match="nan or infinite"):
        good.update(np.array([[0.0, np.nan]]))
    assert good.n == 3
    with pytest.raises(DataError, match="5 dimensions against 2"):
        frechet_distance(good, Gaussian.of(np.zeros((9, 5))))
    with pytest.raises(DataError, match="got 1 feature vectors"):
        frechet_distance(good, Gaussian.of(np.zeros((1, 2))))
    with pytest.raises(DataError, match="no features"):
        _ = Gaussian().mean
