"""How long does a Frechet distance at 2048 dimensions take from 10,000 cached features?

Ours: moments of the features, then the distance with the reference's root cached. The baseline is
what FID codes do: ``numpy.cov`` and ``scipy.linalg.sqrtm`` of the product, with the reference's
mean and covariance cached.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from measure import Section, children, compare, row, threads
from tombola.metrics.frechet import Gaussian, frechet_distance

SIZES = {"full": (10_000, 2048), "toy": (200, 16)}


class Features:
    """Two sets of features with full covariances, like a network's: skewed, correlated, >= 0."""

    def __init__(self, size: str) -> None:
        count, dimensions = SIZES[size]
        draw = np.random.default_rng(0)
        mixing = draw.standard_normal((dimensions, dimensions)) / np.sqrt(dimensions)
        made = [
            np.maximum(draw.standard_normal((count, dimensions)) @ mixing + shift, 0)
            for shift in (0.1, 0.2)
        ]
        self.reference, self.sample = (each.astype(np.float32) for each in made)
        self.gaussian = Gaussian.of(self.reference)
        self.gaussian.root()
        self.mean = self.reference.mean(0, dtype=np.float64)
        self.covariance = np.cov(self.reference, rowvar=False)

    def ours(self) -> float:
        """The distance of the sample's features from the cached reference."""
        return frechet_distance(self.gaussian, Gaussian.of(self.sample))

    def by_sqrtm(self) -> float:
        """The same by the matrix square root of the product of the covariances."""
        mean = self.sample.mean(0, dtype=np.float64)
        covariance = np.cov(self.sample, rowvar=False)
        root: NDArray[np.complex128] = scipy.linalg.sqrtm(self.covariance @ covariance)
        trace = np.trace(self.covariance) + np.trace(covariance) - 2 * np.trace(root.real)
        return float(((self.mean - mean) ** 2).sum() + trace)


def measured(size: str, blocks: int) -> Section:
    """One thread on both sides, as a worker judges; a third of the blocks, for they are long."""
    sides = [({"side": side, "size": size}, threads(1)) for side in ("ours", "sqrtm")]
    with children("bench_frechet.py", *sides) as (ours, baseline):
        found = compare(partial(ours.run, 1), partial(baseline.run, 1), max(1, blocks // 3))
    count, dimensions = SIZES[size]
    return Section(
        title="The Frechet distance against scipy.linalg.sqrtm",
        rows=[row("one distance", found, 0.12)],
        notes=[
            f"{count:,} features of {dimensions} dimensions in float32, to the distance; of the "
            "reference the root (ours) or mean and covariance (baseline) are cached. One thread; "
            f"{max(1, blocks // 3)} blocks."
        ],
    )


if __name__ == "__main__":
    import json
    import sys

    if sys.argv[1:]:
        from measure import serve

        setting = json.loads(sys.argv[1])
        features = Features(setting["size"])
        serve(features.ours if setting["side"] == "ours" else features.by_sqrtm, warm_up=0)
    else:
        from run import main

        main(["frechet"])
