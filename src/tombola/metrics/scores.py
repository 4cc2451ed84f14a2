"""How good are samples or reconstructions, in one number each: KID, inception score and others.

All take arrays of features, probabilities or images and know nothing of where they come from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tombola.errors import DataError

Array = NDArray[np.float64]
DEGREE = 3
"""Degree of KID's polynomial kernel."""


def kid(x: ArrayLike, y: ArrayLike, *, block: int = 1000) -> tuple[float, float]:
    """Unbiased squared MMD between features (m, d) and (n, d), and its standard error.

    Kernel (x.y / d + 1)^3; all pairs are used, so there are no random subsets, and no matrix is
    larger than ``block`` x ``block``. DataError for fewer than two vectors or unequal dimensions.
    Value: Binkowski et al. 2018, section 4, with equation 4 of Gretton et al. 2012. Error: the
    first-order (Hoeffding) variance of a two-sample U-statistic, 4 var(h)/m + 4 var(g)/n.
    """
    x, y = _features("x", x), _features("y", y)
    if x.shape[1] != y.shape[1]:
        raise DataError(
            f"got features of {x.shape[1]} and {y.shape[1]} dimensions; compare one judge's"
        )
    m, n = len(x), len(y)
    across_x, across_y = _cross_sums(x, y, block)
    # each vector's mean kernel to the others of its set, less that to the other set
    h = _within_sums(x, block) / (m - 1) - across_x / n
    g = _within_sums(y, block) / (n - 1) - across_y / m
    value = float(h.mean() + g.mean())
    return value, math.sqrt(4 * float(h.var(ddof=1)) / m + 4 * float(g.var(ddof=1)) / n)


def inception_score(probabilities: ArrayLike) -> float:
    """exp(mean KL(p(y|x) || p(y))) of class probabilities (N, C), in [1, C].

    One split over all samples; 0 log 0 = 0. Salimans et al. 2016, equation 1 of section 4.
    """
    p = _features("probabilities", probabilities)
    if (p < 0).any() or not np.allclose(p.sum(1), 1, atol=1e-3):
        raise DataError("got rows that are no probabilities; each must be >= 0 and sum to 1")
    marginal_entropy = -_x_log_x(p.mean(0)).sum()
    return float(np.exp(marginal_entropy + _x_log_x(p).sum(1).mean()))


def active_units(means: ArrayLike, threshold: float = 0.01) -> int:
    """How many latent units are used: variance over the data of the posterior mean > threshold.

    ``means``: posterior means (N, latent). Burda et al. 2016, section 5.2.
    """
    return int((_features("means", means).var(0) > threshold).sum())


def reconstruction_error(images: ArrayLike, reconstructions: ArrayLike) -> Array:
    """Mean squared error of each image (N, ...) on its own scale, averaged over pixels: (N,)."""
    a, b = np.asarray(images, np.float64), np.asarray(reconstructions, np.float64)
    if a.shape != b.shape:
        raise DataError(f"got images {a.shape} and reconstructions {b.shape}; shapes must agree")
    error: Array = np.square(a - b).reshape(len(a), -1).mean(1)
    return error


def _within_sums(x: Array, block: int) -> Array:
    """Each vector's kernel summed over the other vectors of its set: (N,)."""
    sums = np.zeros(len(x))
    for rows in _blocks(len(x), block):
        for columns in _blocks(rows.stop, block):  # the lower triangle of blocks
            kernel = _kernel(x[rows], x[columns])
            if rows == columns:
                np.fill_diagonal(kernel, 0)
            else:
                sums[columns] += kernel.sum(0)
            sums[rows] += kernel.sum(1)
    return sums


def _cross_sums(x: Array, y: Array, block: int) -> tuple[Array, Array]:
    """Each vector's kernel summed over the vectors of the other set: (m,) and (n,)."""
    sums_x, sums_y = np.zeros(len(x)), np.zeros(len(y))
    for rows in _blocks(len(x), block):
        for columns in _blocks(len(y), block):
            kernel = _kernel(x[rows], y[columns])
            sums_x[rows] += kernel.sum(1)
            sums_y[columns] += kernel.sum(0)
    return sums_x, sums_y


def _kernel(x: Array, y: Array) -> Array:
    base: Array = x @ y.T
    base /= x.shape[1]
    base += 1
    # two products in place are several times faster than a power
    cube = base * base
    cube *= base
    return cube


def _blocks(n: int, block: int) -> Iterator[slice]:
    return (slice(start, min(start + block, n)) for start in range(0, n, block))


def _features(name: str, values: ArrayLike) -> Array:
    array = np.asarray(values, np.float64)
    if array.ndim != 2 or len(array) < 2:
        raise DataError(f"got {name} of shape {array.shape}; give (N, d) with N of at least 2")
    if not np.isfinite(array).all():
        raise DataError(f"{name} hold nan or infinite values; judge finite ones only")
    return array


def _x_log_x(p: Array) -> Array:
    product: Array = p * np.log(np.where(p > 0, p, 1))
    return product
