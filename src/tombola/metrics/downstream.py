"""What does a classifier of the data set make of images: the paper's downstream accuracy, and more.

Reconstructions should still be what they were; samples should look like something, and like every
class.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from tombola.metrics.features import Floats

CONFIDENCE = 0.9
"""A sample counts as clear if one class has a probability above this."""
MOST_CLASSES = 100
"""With more classes than this no share of each is given."""


def accuracy(probabilities: Floats, labels: Tensor) -> float:
    """Share of class probabilities (N, C) whose largest is that of the label, int64 (N,)."""
    return float((probabilities.argmax(1) == labels.numpy()).mean())


def class_shares(probabilities: Floats) -> dict[str, float]:
    """Class probabilities (N, C) of samples -> how clear they are, and how often each class is.

    ``confident``: the share whose largest probability is above 0.9; ``class-00``, ``class-01``,
    ...: the share of each most probable class, unless there are more than 100.
    """
    classes = probabilities.shape[1]
    shares = {"confident": float((probabilities.max(1) > CONFIDENCE).mean())}
    if classes <= MOST_CLASSES:
        counts = np.bincount(probabilities.argmax(1), minlength=classes) / len(probabilities)
        shares |= {f"class-{number:02d}": float(share) for number, share in enumerate(counts)}
    return shares
