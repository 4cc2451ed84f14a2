"""How good are samples or reconstructions, in one number each: inception score and others.

All take arrays of features, probabilities or images and know nothing of where they come from.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tombola.errors import DataError

Array = NDArray[np.float64]


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
