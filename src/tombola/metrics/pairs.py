"""What do the distances between all pairs of real and made images tell: KID, and four shares.

KID and its error, precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et
al. 2020) come from one pass over the pairs, block by block: no matrix of all pairs is ever held.
What concerns the real images alone is computed once. Balls are closed: what lies on the surface is
inside, so that repeated images, whose balls may have no width at all, are found by their likes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tombola.errors import DataError

Array = NDArray[np.float64]
NEIGHBOURS = 5
"""Nearest neighbours that make a ball: k of Naeem et al. 2020, section 5."""
BLOCK_PAIRS = 1 << 18
"""Pairs looked at together: 2 MiB of float64, which stay in a core's cache from step to step."""
ROUNDING = 1e-12
"""What inner products of equal vectors may be off, as a share: well below float32's square."""


class Cloud:
    """Feature vectors (N, d) of one set of images, N of at least 2.

    DataError for another shape, or values that are not finite.
    """

    def __init__(self, features: ArrayLike, neighbours: int = NEIGHBOURS) -> None:
        self.vectors = np.asarray(features, np.float64)
        if self.vectors.ndim != 2 or len(self.vectors) < 2:
            raise DataError(
                f"got features of shape {self.vectors.shape}; give (N, d) with N of at least 2"
            )
        if not np.isfinite(self.vectors).all():
            raise DataError("features hold nan or infinite values; judge finite images only")
        self.neighbours = neighbours
        # less what rounding may add, so that equal vectors are nowhere more than 0 apart
        self.squares = (1 - ROUNDING) * np.einsum("ij,ij->i", self.vectors, self.vectors)

    def __len__(self) -> int:
        return len(self.vectors)

    @cached_property
    def within(self) -> tuple[Array, Array]:
        """Each vector's kernel summed over the others of its cloud, and its ball's squared radius.

        Both (N,). The ball reaches to the k-th nearest other vector; zero where there are fewer.
        """
        sums, radii = np.zeros(len(self)), np.zeros(len(self))
        for rows, products in _products(self, self):
            diagonal = np.arange(rows.stop - rows.start)
            kernel = _kernel(products, self.vectors.shape[1])
            kernel[diagonal, diagonal + rows.start] = 0
            sums[rows] = kernel.sum(1)
            if self.neighbours < len(self):
                # half the bytes, a third of the time; a radius is as exact as a feature is
                exact = _distances(products, self.squares[rows], self.squares)
                distances = exact.astype(np.float32)
                distances[diagonal, diagonal + rows.start] = np.inf
                distances.partition(self.neighbours - 1, axis=1)
                reach = distances[:, self.neighbours - 1].clip(min=0)
                # a float32 up, so that the neighbour that makes the ball is in it
                radii[rows] = reach * (1 + np.finfo(np.float32).eps)
        return sums, radii


def compare(reals: Cloud, fakes: Cloud) -> dict[str, float]:
    """How one cloud lies to the other: by name, each as of its source.

    ``kid``: the unbiased squared MMD with the kernel (x.y / d + 1)^3 over all pairs (Binkowski et
    al. 2018, section 4; Gretton et al. 2012, equation 4), and ``kid_error``, its standard error:
    the first-order (Hoeffding) variance of a two-sample U-statistic, 4 var(h)/m + 4 var(g)/n.
    With more vectors than neighbours in both clouds also, in [0, 1] but for density: ``precision``,
    the share of fakes in a real's ball; ``recall``, of reals in a fake's; ``density``, the mean
    number of real balls around a fake, over k; ``coverage``, the share of real balls with a fake in
    them. DataError for unequal dimensions.
    """
    if reals.vectors.shape[1] != fakes.vectors.shape[1]:
        raise DataError(
            f"got features of {reals.vectors.shape[1]} and {fakes.vectors.shape[1]} dimensions; "
            "compare one judge's"
        )
    m, n, k = len(reals), len(fakes), reals.neighbours
    balls = k < m and fakes.neighbours < n
    real_sums, real_radii = reals.within
    fake_sums, fake_radii = fakes.within
    across_reals, across_fakes = np.zeros(m), np.zeros(n)
    covered, recalled = np.zeros(m, bool), np.zeros(m, bool)
    depth = np.zeros(n, np.int64)
    for rows, products in _products(fakes, reals):
        kernel = _kernel(products, fakes.vectors.shape[1])
        across_fakes[rows] = kernel.sum(1)
        across_reals += kernel.sum(0)
        if balls:
            distances = _distances(products, fakes.squares[rows], reals.squares)
            inside = distances <= real_radii
            depth[rows] = inside.sum(1)
            covered |= inside.any(0)
            recalled |= (distances <= fake_radii[rows, None]).any(0)
    # each vector's mean kernel to the others of its cloud, less that to the other cloud
    h = real_sums / (m - 1) - across_reals / n
    g = fake_sums / (n - 1) - across_fakes / m
    error = math.sqrt(4 * float(h.var(ddof=1)) / m + 4 * float(g.var(ddof=1)) / n)
    found = {"kid": float(h.mean() + g.mean()), "kid_error": error}
    if balls:
        found |= {
            "precision": float((depth > 0).mean()),
            "recall": float(recalled.mean()),
            "density": float(depth.mean()) / k,
            "coverage": float(covered.mean()),
        }
    return found


def _products(left: Cloud, right: Cloud) -> Iterator[tuple[slice, Array]]:
    """Rows of ``left``, a block at a time, with their inner products with all of ``right``."""
    step = max(1, BLOCK_PAIRS // len(right))
    for start in range(0, len(left), step):
        rows = slice(start, min(start + step, len(left)))
        yield rows, left.vectors[rows] @ right.vectors.T


def _kernel(products: Array, dimensions: int) -> Array:
    base: Array = products / dimensions
    base += 1
    # two products in place are several times faster than a power
    cube: Array = base * base
    cube *= base
    return cube


def _distances(products: Array, rows: Array, columns: Array) -> Array:
    """Squared distances from inner products, in their place."""
    products *= -2
    products += rows[:, None]
    products += columns
    return products
