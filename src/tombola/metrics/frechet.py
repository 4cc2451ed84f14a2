"""How far apart are two sets of features: the Frechet distance between their Gaussians.

|mu_a - mu_b|^2 + Tr(A + B - 2 (A B)^(1/2)): Dowson and Landau 1982; on Inception features it is the
FID of Heusel et al. 2017. Everything is in float64: float32 sums lose 1e-3 of the distance.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import blas, lapack

from tombola.errors import DataError

Array = NDArray[np.float64]
BLOCK = 500
"""Vectors that are widened to float64 at a time: small enough to stay in the processor's cache."""
LARGE = 512
"""Dimensions from which LAPACK's symmetric congruence is used instead of two products."""


class Gaussian:
    """Mean and covariance of a stream of feature vectors, summed in float64.

    Sums are taken about the first batch's mean, which keeps them exact for features far from zero.
    The vectors themselves are kept while they are fewer than their dimensions, for the Gram form.
    """

    def __init__(self) -> None:
        self.n = 0
        self._shift: Array = np.zeros(0)
        self._sum: Array = np.zeros(0)
        self._scatter: Array | None = None
        self._kept: list[Array] = []
        self._covariance: Array | None = None
        self._root: Array | None = None

    @staticmethod
    def of(features: ArrayLike) -> Gaussian:
        """The Gaussian of features (N, d)."""
        gaussian = Gaussian()
        gaussian.update(features)
        return gaussian

    @staticmethod
    def from_moments(n: int, mean: ArrayLike, covariance: ArrayLike) -> Gaussian:
        """The Gaussian of ``n`` vectors with this mean (d,) and unbiased covariance (d, d)."""
        gaussian = Gaussian()
        gaussian.n = n
        gaussian._shift = np.array(mean, np.float64)
        gaussian._sum = np.zeros_like(gaussian._shift)
        gaussian._scatter = np.array(covariance, np.float64, order="F") * (n - 1)
        return gaussian

    @property
    def dimensions(self) -> int:
        """Length of a feature vector; 0 before the first batch."""
        return len(self._shift)

    def update(self, features: ArrayLike) -> None:
        """Add a batch of features (N, d); DataError if they do not fit or are not finite."""
        batch = np.asarray(features)
        if batch.ndim != 2 or (self.n and batch.shape[1] != self.dimensions):
            expected = f"(N, {self.dimensions})" if self.n else "(N, d)"
            raise DataError(f"got features of shape {batch.shape}; give them as {expected}")
        if not np.isfinite(batch).all():
            raise DataError("features hold nan or infinite values; judge finite images only")
        for start in range(0, len(batch), BLOCK):
            self._add(batch[start : start + BLOCK])

    def _add(self, batch: NDArray[Any]) -> None:
        if not self.n:
            self._shift = batch.mean(0, dtype=np.float64)
            self._sum = np.zeros_like(self._shift)
        centred = batch.astype(np.float64)
        centred -= self._shift
        self.n += len(batch)
        self._sum += centred.sum(0)
        self._covariance = self._root = None
        if self._scatter is None:
            self._kept.append(centred)
            if self.n < self.dimensions:
                return
            centred = np.concatenate(self._kept)
            self._kept, self._scatter = [], np.zeros((self.dimensions,) * 2, order="F")
        # a symmetric rank-k update in place: half the work of a product, the lower triangle only
        self._scatter = blas.dsyrk(
            1.0, centred.T, beta=1.0, c=self._scatter, lower=1, overwrite_c=1
        )

    @property
    def mean(self) -> Array:
        """Mean (d,); DataError before the first batch."""
        if not self.n:
            raise DataError("no features were given; a mean needs at least 1 vector")
        return self._shift + self._sum / self.n

    @property
    def covariance(self) -> Array:
        """Unbiased covariance (d, d); DataError for fewer than two vectors."""
        if self._covariance is None:
            lower = self.lower()
            self._covariance = np.tril(lower)
            self._covariance += np.tril(lower, -1).T
        return self._covariance

    def root(self) -> Array:
        """Lower triangular L (d, d) with L L^T = covariance; computed once and kept."""
        if self._root is None:
            self._root = triangular_root(self.covariance)
        return self._root

    def lower(self) -> Array:
        """The covariance (d, d), of which only the lower triangle is right; raises as above."""
        factor = self._factor()
        if factor is not None:
            whole: Array = factor.T @ factor
            return whole
        assert self._scatter is not None
        # the scatter about the mean is that about the shift less n times the offset's square
        scaled: Array = self._scatter / (self.n - 1)
        share = -self.n / (self.n - 1)
        lower: Array = blas.dsyr(share, self._sum / self.n, a=scaled, lower=1, overwrite_a=1)
        return lower

    def trace(self, factor: Array | None) -> float:
        """The covariance's trace; ``factor`` is what ``_factor`` gives."""
        if factor is not None:
            return float((factor * factor).sum())
        assert self._scatter is not None
        offset = self._sum / self.n
        return (float(np.trace(self._scatter)) - self.n * float(offset @ offset)) / (self.n - 1)

    def _factor(self) -> Array | None:
        """F (n, d) with F^T F = covariance while vectors are fewer than dimensions, else None."""
        if self.n < 2:
            raise DataError(f"got {self.n} feature vectors; a covariance needs at least 2")
        if not self._kept:
            return None
        factor: Array = np.concatenate(self._kept) - self._sum / self.n
        factor /= np.sqrt(self.n - 1)
        return factor


def triangular_root(matrix: Array) -> Array:
    """Lower triangular L with L L^T = a symmetric positive semi-definite matrix (d, d).

    By eigenvectors and QR, which unlike Cholesky's way allow a matrix of less than full rank.
    """
    values, vectors = np.linalg.eigh(matrix)
    _, upper = np.linalg.qr((vectors * np.sqrt(values.clip(0))).T)
    return np.asfortranarray(upper.T)


def frechet_distance(
    reference: Gaussian, sample: Gaussian, *, root: NDArray[Any] | None = None
) -> float:
    """Squared Frechet distance between two Gaussians, >= 0, symmetric in its arguments.

    ``root``: ``reference.root()`` if it is at hand from elsewhere; the reference itself keeps it,
    so that one reference against many samples pays for it once. DataError for other dimensions
    than the reference's or fewer than two vectors. Heusel et al. 2017, equation 6.
    """
    if reference.n and sample.n and reference.dimensions != sample.dimensions:
        raise DataError(
            f"got features of {sample.dimensions} dimensions against {reference.dimensions}; "
            "compare features of one judge"
        )
    a, b = reference._factor(), sample._factor()
    offset = reference.mean - sample.mean
    if a is not None and b is not None:
        # Tr (A B)^(1/2) of A = a^T a, B = b^T b is the nuclear norm of a b^T
        shared = float(np.linalg.svd(a @ b.T, compute_uv=False).sum())
    elif b is not None:
        shared = _trace_root(b @ reference.covariance @ b.T)
    elif a is not None:
        shared = _trace_root(a @ sample.covariance @ a.T)
    else:
        root = reference.root() if root is None else root
        shared = _trace_root(_congruent(sample, root))
    total = reference.trace(a) + sample.trace(b) + float(offset @ offset)
    # rounding may leave a distance of zero at -1e-15 of the traces
    return max(0.0, total - 2 * shared)


def _congruent(sample: Gaussian, root: NDArray[Any]) -> Array:
    """L^T B L, which has the eigenvalues of L L^T B; at least its lower triangle is right."""
    if sample.dimensions < LARGE:
        small: Array = root.T @ sample.covariance @ root
        return small
    # an eighth of two products' work, but many calls: slow on small matrices
    product, info = lapack.dsygst(sample.lower(), root, itype=2, lower=1, overwrite_a=1)
    assert info == 0
    large: Array = product
    return large


def _trace_root(matrix: Array) -> float:
    """Trace of the root of a positive semi-definite matrix, given by its lower triangle."""
    return float(np.sqrt(np.linalg.eigvalsh(matrix).clip(0)).sum())
