"""KID, precision, recall, density and coverage against closed forms and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tombola.errors import DataError
from tombola.metrics import pairs
from tombola.metrics.pairs import Cloud, compare


def kid(x, y):
    found = compare(Cloud(x), Cloud(y))
    return found["kid"], found["kid_error"]


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


def by_loops(x, y, k):
    """All six numbers from their definitions, a pair at a time."""

    def kernel(a, b):
        return (a @ b / x.shape[1] + 1) ** 3

    def within(z):
        pairs = [kernel(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]
        return np.mean(pairs)

    def radii(z):
        return [
            sorted(math.dist(z[i], z[j]) for j in range(len(z)) if j != i)[k - 1]
            for i in range(len(z))
        ]

    real, fake = radii(x), radii(y)
    inside = [[math.dist(a, b) <= real[i] for b in y] for i, a in enumerate(x)]
    found = [[math.dist(a, b) <= fake[j] for j, b in enumerate(y)] for a in x]
    return {
        "kid": within(x) + within(y) - 2 * np.mean([kernel(a, b) for a in x for b in y]),
        "precision": np.mean(np.any(inside, axis=0)),
        "recall": np.mean(np.any(found, axis=1)),
        "density": np.sum(inside) / (k * len(y)),
        "coverage": np.mean(np.any(inside, axis=1)),
    }


@pytest.mark.parametrize("block", [1, 20, 31, 64, 10_000])
def test_by_blocks_is_by_loops(block, monkeypatch):
    monkeypatch.setattr(pairs, "BLOCK_PAIRS", block)
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(11, 3)), rng.normal(size=(8, 3)) + 0.7
    found = compare(Cloud(x, neighbours=3), Cloud(y, neighbours=3))
    expected = by_loops(x, y, 3)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-12)
    shares = {name: found[name] for name in ("precision", "recall", "density", "coverage")}
    assert len(set(shares.values())) == 4  # this draw tells them apart
    assert all(0 < value < 1 for value in shares.values())


def test_moments_are_sums_over_pairs(monkeypatch):
    monkeypatch.setattr(pairs, "BLOCK_VECTORS", 4)
    rng = np.random.default_rng(7)
    x, y = rng.normal(size=(11, 5)) + 3, rng.normal(size=(30, 5)) - 1
    by_moments = compare(Cloud(x), Cloud(y))
    assert by_moments["kid"] == pytest.approx(by_loops(x, y, 5)["kid"], rel=1e-12)
    monkeypatch.setattr(pairs, "MOST_DIMENSIONS", 4)
    by_pairs = compare(Cloud(x), Cloud(y))
    assert by_moments["kid_error"] == pytest.approx(by_pairs["kid_error"], rel=1e-12)
    assert by_moments == pytest.approx(by_pairs, rel=1e-9)


def test_neighbours_are_of_as_many_fakes_as_reals():
    rng = np.random.default_rng(8)
    x, y = rng.normal(size=(20, 3)), rng.normal(size=(60, 3)) + 0.7
    more, equal = compare(Cloud(x), Cloud(y)), compare(Cloud(x), Cloud(y[:20]))
    names = ["precision", "recall", "density", "coverage"]
    assert [more[name] for name in names] == [equal[name] for name in names]
    assert more["kid"] == pytest.approx(by_loops(x, y, 5)["kid"], rel=1e-12)
    assert more["kid"] != pytest.approx(equal["kid"], rel=0.01)
    assert more["kid_error"] < equal["kid_error"]


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


def test_shares_on_a_line():
    """Balls of one neighbour: radii 1, 1, 9 of the reals and 29.5, 1, 1 of the fakes."""
    reals, fakes = np.array([[0.0], [1.0], [10.0]]), np.array([[0.5], [30.0], [31.0]])
    found = compare(Cloud(reals, neighbours=1), Cloud(fakes, neighbours=1))
    assert found["precision"] == 1 / 3  # 0.5 alone lies in a ball of a real: those of 0 and 1
    assert found["density"] == 2 / 3
    assert found["coverage"] == 2 / 3  # |0.5 - 10| is beyond 9
    assert found["recall"] == 1  # the ball of 0.5 reaches 29.5 far


@pytest.mark.parametrize("mean", [0.0, 300.0])
def test_repeated_images_are_found_by_their_likes(mean, monkeypatch):
    """Each of 30 images six times: balls of five neighbours have no width, and hold their likes."""
    images = np.random.default_rng(9).normal(mean, 1, (30, 517)).astype(np.float32)
    reals, fakes = Cloud(np.repeat(images, 6, 0)), Cloud(images)
    assert not reals.radii.any()
    monkeypatch.setattr(pairs, "BLOCK_PAIRS", 1)  # products that are rounded in another way
    found = compare(reals, fakes)
    assert [found[name] for name in ("precision", "density", "coverage")] == [1, 6 / 5, 1]
    found = compare(Cloud(np.tile(images, (6, 1))), reals)
    assert found["recall"] == 1
    half = compare(reals, Cloud(np.tile(images[:15], (6, 1))))
    assert [half[name] for name in ("precision", "recall", "coverage")] == [1, 0.5, 0.5]
    other = compare(reals, Cloud(np.repeat(images + np.float32(0.01), 6, 0)))
    assert [other[name] for name in ("precision", "recall", "coverage")] == [0, 0, 0]


def test_what_lies_on_a_balls_surface_is_inside():
    """Two places three times each: a ball of five neighbours reaches the other place, no further.

    In whole numbers, whose products are exact, and in others, which are rounded.
    """
    rng = np.random.default_rng(10)
    for a, b in [rng.integers(-9, 9, (2, 33)), *rng.normal(size=(20, 2, 33)).astype(np.float32)]:
        reals = Cloud(np.stack([a, a, a, b, b, b]))
        found = compare(reals, Cloud(np.stack([b] * 6)))
        assert [found[name] for name in ("precision", "density", "coverage")] == [1, 6 / 5, 1]
        assert found["recall"] == 0.5
        assert compare(Cloud(np.stack([b] * 6)), reals)["recall"] == 1
        beyond = compare(reals, Cloud(np.stack([b + (b - a) / 1000] * 6)))
        assert [beyond[name] for name in ("density", "coverage")] == [3 / 5, 0.5]
    zero = Cloud(np.zeros((6, 3)))
    assert compare(zero, zero)["recall"] == compare(zero, zero)["coverage"] == 1


def test_coverage_of_one_distribution_meets_its_closed_form():
    """Naeem et al. 2020, lemma 2: 1 - prod_{i=1..k} (N - i) / (2N - i), whatever the features."""
    rng = np.random.default_rng(5)
    n, k = 100, 5
    found = [
        compare(Cloud(rng.normal(size=(n, 6))), Cloud(rng.normal(size=(n, 6)))) for _ in range(60)
    ]
    coverage = np.array([each["coverage"] for each in found])
    expected = 1 - math.prod((n - i) / (2 * n - i) for i in range(1, k + 1))
    assert abs(coverage.mean() - expected) < 4 * coverage.std() / math.sqrt(60) < 0.04
    density = np.array([each["density"] for each in found])
    assert abs(density.mean() - 1) < 4 * density.std() / math.sqrt(60) < 0.15


def test_equal_clouds_match_and_distant_ones_share_nothing():
    rng = np.random.default_rng(6)
    x = rng.normal(size=(40, 4))
    same, apart = compare(Cloud(x), Cloud(x.copy())), compare(Cloud(x), Cloud(x + 100))
    assert [same[name] for name in ("precision", "recall", "coverage")] == [1, 1, 1]
    assert [apart[name] for name in ("precision", "recall", "density", "coverage")] == [0] * 4


def test_fewer_vectors_than_neighbours_have_no_balls():
    rng = np.random.default_rng(7)
    few, many = Cloud(rng.normal(size=(5, 2))), Cloud(rng.normal(size=(6, 2)))
    assert set(compare(few, many)) == set(compare(many, few)) == {"kid", "kid_error"}
    assert "coverage" in compare(many, many)


def test_what_concerns_the_reals_alone_is_computed_once(monkeypatch):
    passes = []
    products = pairs._products
    monkeypatch.setattr(pairs, "_products", lambda a, b: (passes.append((a, b)), products(a, b))[1])
    rng = np.random.default_rng(8)
    reals = Cloud(rng.normal(size=(9, 2)))
    for _ in range(3):
        compare(reals, Cloud(rng.normal(size=(9, 2))))
    assert len(passes) == 1 + 3 * 2


def test_bad_input_is_refused():
    two = Cloud(np.zeros((2, 3)))
    with pytest.raises(DataError, match="3 and 4 dimensions"):
        compare(two, Cloud(np.zeros((2, 4))))
    with pytest.raises(DataError, match=r"of shape \(1, 3\)"):
        Cloud(np.zeros((1, 3)))
    with pytest.raises(DataError, match="hold nan"):
        Cloud(np.full((2, 3), np.nan))
