"""What do the distances between all pairs of real and made images tell: KID, and four shares.

Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020) come from
one pass over the pairs, block by block: no matrix of all pairs is ever held. KID and its error need
no pairs where features have few dimensions, for its kernel is a cubic form:

    sum_j (x . y_j / d + 1)^3 = sum_klm T_klm a_k a_l a_m,    T_klm = sum_j b_jk b_jl b_jm,
    a = (x / d, 1),  b_j = (y_j, 1)

so it is of 50,000 samples at the price of a few thousand. What concerns the real images alone is
computed once.

Balls are closed: what lies on the surface is inside, so that repeated images, whose balls may have
no width at all, are found by their likes.
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
MOST_DIMENSIONS = 128
"""Up to so many KID is taken by moments, T being (129^2, 129) then; beyond, from all pairs."""
BLOCK_VECTORS = 256
"""Vectors whose products b b are held together."""
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
        self.squares = np.einsum("ij,ij->i", self.vectors, self.vectors)

    def __len__(self) -> int:
        return len(self.vectors)

    def first(self, at_most: int) -> Cloud:
        """The cloud of the first vectors."""
        return self if len(self) <= at_most else Cloud(self.vectors[:at_most], self.neighbours)

    @cached_property
    def radii(self) -> Array:
        """The squared radius of each vector's ball, (N,).

        It reaches to the k-th nearest other vector; zero where there are fewer.
        """
        radii = np.zeros(len(self))
        for rows, products in _products(self, self) if self.neighbours < len(self) else ():
            diagonal = np.arange(rows.stop - rows.start)
            # half the bytes, a third of the time; a radius is as exact as a feature is
            exact = _distances(products, self.squares[rows], self.squares)
            distances = exact.astype(np.float32)
            distances[diagonal, diagonal + rows.start] = np.inf
            distances.partition(self.neighbours - 1, axis=1)
            reach = distances[:, self.neighbours - 1].clip(min=0)
            # a float32 up, so that the neighbour that makes the ball is in it
            radii[rows] = reach * (1 + np.finfo(np.float32).eps)
        return radii

    @cached_property
    def within(self) -> Array:
        """Each vector's kernel summed over the others of its cloud, (N,)."""
        return self.kernel_sums(self) - _kernel(self.squares, self.vectors.shape[1])

    @cached_property
    def _cubes(self) -> Array:
        """T of the vectors, ((d + 1)^2, d + 1)."""
        size = self.vectors.shape[1] + 1
        total = np.zeros((size * size, size))
        for _, b in _blocks(self.vectors):
            total += _squared(b).T @ b
        return total

    def kernel_sums(self, others: Cloud) -> Array:
        """Each vector's kernel summed over all vectors of a cloud, (N,)."""
        sums, dimensions = np.zeros(len(self)), self.vectors.shape[1]
        if dimensions > MOST_DIMENSIONS:
            for rows, products in _products(self, others):
                sums[rows] = _kernel(products, dimensions).sum(1)
            return sums
        for rows, a in _blocks(self.vectors / dimensions):
            sums[rows] = np.einsum("ij,ij->i", _squared(a) @ others._cubes, a)
        return sums


def compare(reals: Cloud, fakes: Cloud) -> dict[str, float]:
    """How one cloud lies to the other: by name, each as of its source.

    ``kid``: the unbiased squared MMD with the kernel (x.y / d + 1)^3 over all pairs (Binkowski et
    al. 2018, section 4; Gretton et al. 2012, equation 4), and ``kid_error``, its standard error:
    the first-order (Hoeffding) variance of a two-sample U-statistic, 4 var(h)/m + 4 var(g)/n.
    With more vectors than neighbours in both clouds also, in [0, 1] but for density: ``precision``,
    the share of fakes in a real's ball; ``recall``, of reals in a fake's; ``density``, the mean
    number of real balls around a fake, over k; ``coverage``, the share of real balls with a fake in
    them. These four are of at most as many fakes as reals, the first: all pairs of more would take
    minutes, and coverage and recall grow with the fakes. DataError for unequal dimensions.
    """
    if reals.vectors.shape[1] != fakes.vectors.shape[1]:
        raise DataError(
            f"got features of {reals.vectors.shape[1]} and {fakes.vectors.shape[1]} dimensions; "
            "compare one judge's"
        )
    m, n, k = len(reals), len(fakes), reals.neighbours
    # each vector's mean kernel to the others of its cloud, less that to the other cloud
    h = reals.within / (m - 1) - reals.kernel_sums(fakes) / n
    g = fakes.within / (n - 1) - fakes.kernel_sums(reals) / m
    error = math.sqrt(4 * float(h.var(ddof=1)) / m + 4 * float(g.var(ddof=1)) / n)
    found = {"kid": float(h.mean() + g.mean()), "kid_error": error}
    fakes = fakes.first(m)
    if k >= m or fakes.neighbours >= len(fakes):
        return found
    real_radii, fake_radii = reals.radii, fakes.radii
    covered, recalled = np.zeros(m, bool), np.zeros(m, bool)
    depth = np.zeros(len(fakes), np.int64)
    for rows, products in _products(fakes, reals):
        distances = _distances(products, fakes.squares[rows], reals.squares)
        inside = distances <= real_radii
        depth[rows] = inside.sum(1)
        covered |= inside.any(0)
        recalled |= (distances <= fake_radii[rows, None]).any(0)
    return found | {
        "precision": float((depth > 0).mean()),
        "recall": float(recalled.mean()),
        "density": float(depth.mean()) / k,
        "coverage": float(covered.mean()),
    }


def _products(left: Cloud, right: Cloud) -> Iterator[tuple[slice, Array]]:
    """Rows of ``left``, a block at a time, with their inner products with all of ``right``."""
    step = max(1, BLOCK_PAIRS // len(right))
    for start in range(0, len(left), step):
        rows = slice(start, min(start + step, len(left)))
        yield rows, left.vectors[rows] @ right.vectors.T


def _blocks(vectors: Array) -> Iterator[tuple[slice, Array]]:
    """Rows of vectors (N, d), a block at a time, with a one behind each."""
    for start in range(0, len(vectors), BLOCK_VECTORS):
        block = vectors[start : start + BLOCK_VECTORS]
        yield slice(start, start + len(block)), np.pad(block, ((0, 0), (0, 1)), constant_values=1)


def _squared(vectors: Array) -> Array:
    """Vectors (N, d) -> the products of their components with each other, (N, d^2)."""
    return (vectors[:, :, None] * vectors[:, None, :]).reshape(len(vectors), -1)


def _kernel(products: Array, dimensions: int) -> Array:
    base: Array = products / dimensions
    base += 1
    # two products in place are several times faster than a power
    cube: Array = base * base
    cube *= base
    return cube


def _distances(products: Array, rows: Array, columns: Array) -> Array:
    """Squared distances from inner products, in their place.

    Less what rounding may add, so that equal vectors are nowhere more than 0 apart.
    """
    products *= -2
    products += (1 - ROUNDING) * rows[:, None]
    products += (1 - ROUNDING) * columns
    return products
