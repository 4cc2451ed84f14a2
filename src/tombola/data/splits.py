"""What is a data set before and after it is adapted, and who is in which split?"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tombola.data import checks
from tombola.data.adapt import Shape, describe
from tombola.data.checks import MIN_IMAGES, MOST_CLASSES
from tombola.data.decode import Adapted, adapt_all
from tombola.data.given import label_tensor
from tombola.errors import DataError

SPLITS = ("train", "validation", "judge")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Images:
    """A data set in the shape that a task wants, in memory."""

    name: str
    """Short name: digits, mnist, folder-<name>, tensor-<sha8> ..."""
    splits: dict[str, Tensor]
    """train, validation, judge -> uint8 (N, C, H, W) on the CPU."""
    labels: dict[str, Tensor | None]
    """The same keys -> int64 (N,), or None where the source has no labels."""
    classes: int
    """Number of classes; 0 without labels."""
    sha256: str
    """The data hash: of the adapted images and labels of all splits."""
    note: str
    """How the images were adapted; after a semicolon, what is to be known of them."""

    @property
    def remarks(self) -> str:
        """What is to be known of the data before a search begins; empty for nothing."""
        return self.note.partition("; ")[2]

    def first(self, split: str, at_most: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Images of a split and their labels, at most so many of them, in the order of a hash.

        The order of the source says nothing then: of a folder of class folders the first hundred
        are of all classes. It is the same for every seed, and fewer are the first of more.
        """
        images, labels = self.splits[split], self.labels.get(split)
        chosen = torch.tensor(_ranked(len(images), split)[:at_most], device="cpu")
        return images[chosen], _take(labels, chosen)


@dataclass(frozen=True, kw_only=True)
class Raw:
    """What a source returns: its images as they are, decoded or not."""

    train: Any
    """uint8 (N, C, H, W), or a sequence of images or of (image, label)."""
    labels: Any = None
    """Integers (N,), or a function that returns them once the images have been read."""
    test: Any = None
    """The official test split, which becomes the judge split; None = a tenth of train does."""
    test_labels: Any = None
    sizes: tuple[int, int] | None = None
    """Exact sizes of validation and judge, both drawn from train; None = a tenth each."""
    files: tuple[Path, ...] = ()
    """All files that the images come from: with them the decoded images are cached."""
    notes: tuple[str, ...] = field(default=())
    """What the user should know, such as files that were skipped."""


def split_indices(count: int, validation: int, judge: int) -> dict[str, Tensor]:
    """Which of ``count`` images are in which split, the same for every seed.

    Images are ranked by the SHA-256 of their index: the first ``judge`` are the judge split, the
    next ``validation`` the validation split. Each split keeps the source's order.
    """
    ranks = _ranked(count, "split")
    cuts = {
        "train": ranks[judge + validation :],
        "validation": ranks[judge : judge + validation],
        "judge": ranks[:judge],
    }
    return {
        name: torch.tensor(sorted(cut), dtype=torch.int64, device="cpu")
        for name, cut in cuts.items()
    }


@lru_cache(maxsize=8)
def _ranked(count: int, word: str) -> tuple[int, ...]:
    """The numbers below ``count`` in the order of the SHA-256 of ``<word>/<number>``."""
    digest = {i: hashlib.sha256(f"{word}/{i}".encode()).digest() for i in range(count)}
    return tuple(sorted(digest, key=digest.__getitem__))


def data_hash(splits: dict[str, Tensor], labels: dict[str, Tensor | None]) -> str:
    """SHA-256 over train, validation, judge: name and shape, the bytes, then the labels' bytes."""
    digest = hashlib.sha256()
    for split in SPLITS:
        digest.update(f"{split}:{tuple(splits[split].shape)}:".encode())
        digest.update(splits[split].contiguous().numpy().data)
        numbers = labels[split]
        if numbers is not None:
            digest.update(b"labels:")
            digest.update(numbers.numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def assemble(
    name: str,
    raw: Raw,
    shape: Shape,
    skip_broken: bool = False,
    *,
    white: int = 0,
    progress: Progress | None = None,
) -> Images:
    """Decode, adapt and split a source; DataError for broken or too few images, or bad labels."""
    how: dict[str, Any] = {"skip_broken": skip_broken, "white": white, "progress": progress}
    total = len(raw.train) + (0 if raw.test is None else len(raw.test))
    if total < MIN_IMAGES or (raw.test is not None and len(raw.test) == 0):
        raise checks.too_few(f"data source {name}", total)
    train = adapt_all(raw.train, shape, **how)
    tenth = max(1, len(raw.train) // 10)
    validation, judge = raw.sizes or (tenth, tenth if raw.test is None else 0)
    indices = split_indices(len(raw.train), validation, judge)
    labels = _labels_of(raw.labels, train, f"{name}, train")
    splits, numbers = {}, {}
    for split, chosen in indices.items():
        kept = _unbroken(chosen, train)
        splits[split], numbers[split] = train.images[kept], _take(labels, kept)
    seen = Adapted(torch.empty(0, device="cpu"))
    seen.join(train)
    if raw.test is not None:
        test = adapt_all(raw.test, shape, **how)
        kept = _unbroken(torch.arange(len(raw.test), device="cpu"), test)
        test_labels = _labels_of(raw.test_labels, test, f"{name}, test")
        splits["judge"], numbers["judge"] = test.images[kept], _take(test_labels, kept)
        seen.join(test)
    sound = sum(len(part) for part in splits.values())
    if sound < MIN_IMAGES or min(len(part) for part in splits.values()) == 0:
        raise checks.too_few(f"data source {name}, broken images left out,", sound)
    numbers, classes, said = _number_classes(name, numbers)
    broken = len(train.broken) + (len(test.broken) if raw.test is not None else 0)
    notes = [describe(seen.sizes, shape), *raw.notes, said, seen.range_note]
    notes.append(f"{broken} broken images skipped" if broken else "")
    digest = data_hash(splits, numbers)
    return Images(name, splits, numbers, classes, digest, "; ".join(filter(None, notes)))


def _number_classes(
    name: str, labels: dict[str, Tensor | None]
) -> tuple[dict[str, Tensor | None], int, str]:
    """(labels below K, K = the number of classes or 0 without labels, what is to be known).

    Labels that are too large to number classes are ids, such as of persons: they are numbered in
    their order. DataError for more than MOST_CLASSES.
    """
    given = [part for part in labels.values() if part is not None]
    if len(given) < len(SPLITS):
        said = "labels left out: not every split has them" if given else ""
        return dict.fromkeys(SPLITS), 0, said
    every = torch.cat(given)
    classes, said = 1 + int(every.max()), ""
    if classes > min(len(every), MOST_CLASSES):
        values = torch.unique(every)
        classes, said = len(values), f"labels are ids, taken for {len(values)} classes"
        labels = {k: None if v is None else torch.searchsorted(values, v)
                  for k, v in labels.items()}  # fmt: skip
    if classes > MOST_CLASSES:
        raise DataError(
            f"data source {name} has labels of {classes:,} kinds; at most {MOST_CLASSES:,} classes "
            "can be told apart: group them, or give images without labels"
        )
    return labels, classes, said


def _unbroken(indices: Tensor, part: Adapted) -> Tensor:
    if not part.broken:
        return indices
    return indices[~torch.isin(indices, torch.tensor(sorted(part.broken), device="cpu"))]


def _take(labels: Tensor | None, indices: Tensor) -> Tensor | None:
    return None if labels is None else labels[indices]


def _labels_of(labels: Any, part: Adapted, what: str) -> Tensor | None:
    """Labels as given, or those that came with the items; broken items get 0, unused."""
    if callable(labels):
        labels = labels()
    if labels is None and part.labels:
        for index in range(len(part.images)):
            if index not in part.labels and index not in part.broken:
                raise DataError(f"{what}: only some images have labels; label all or none")
        labels = [part.labels.get(index, 0) for index in range(len(part.images))]
    return label_tensor(labels, len(part.images), what)
