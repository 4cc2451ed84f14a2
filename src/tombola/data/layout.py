"""What do the folders in a tree of images stand for: splits, classes, or nothing?

Told by their names and sizes alone, and every guess is told in a note.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tombola.data.checks import MIN_IMAGES, MOST_CLASSES
from tombola.errors import DataError

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation"), VALIDATION),
    **dict.fromkeys(("test", "testing"), TEST),
}
"""Name of a folder, in lower case -> the split that it holds."""


@dataclass(frozen=True)
class Layout:
    """The images of a tree, in the order of their relative paths."""

    train: tuple[Path, ...]
    labels: list[int] | None
    test: tuple[Path, ...]
    """The official test split; empty = the tree has none."""
    test_labels: list[int] | None
    notes: list[str]


def read_layout(root: Path, paths: Sequence[Path]) -> Layout:
    """What the subfolders of a tree say of its images.

    Splits, where a folder for training is beside one for test or validation, at any depth: test is
    what is never trained on (validation where there is no test), and what is in neither is left
    out. Else all is for training. Classes: the first folders that differ, if every image lies in
    one, if there are two to MOST_CLASSES, and if they hold MIN_IMAGES on average. DataError for
    folders for test and validation without one for training.
    """
    folders = [path.relative_to(root).parts[:-1] for path in paths]
    splits = [next((SPLIT_NAMES.get(n.lower()) for n in names if n.lower() in SPLIT_NAMES), None)
              for names in folders]  # fmt: skip
    count = Counter(splits)
    if count[TEST] and count[VALIDATION] and not count[TRAIN]:
        raise DataError(
            f"folder {root} has folders for test and validation, and none for training; name the "
            "one to train on, or call one train"
        )
    if not count[TRAIN] or not (count[TEST] or count[VALIDATION]):
        train, notes = list(range(len(paths))), []
        test: list[int] = []
    else:
        held_out = TEST if count[TEST] else VALIDATION
        train, test = ([i for i, s in enumerate(splits) if s == kind] for kind in (TRAIN, held_out))
        left = len(paths) - len(train) - len(test)
        notes = [f"splits from its subfolders: {len(train)} images to train and validate, "
                 f"{len(test)} of {held_out} to judge"]  # fmt: skip
        notes += [f"{left} images in neither left out"] if left else []
        folders = [_without_split(names) for names in folders]
        shared = _shared([folders[i] for i in (*train, *test)])
        folders = [names[shared:] for names in folders]
    labels, said = _classes([folders[i] for i in (*train, *test)])
    return Layout(
        train=tuple(paths[i] for i in train),
        labels=labels and labels[: len(train)],
        test=tuple(paths[i] for i in test),
        test_labels=labels and labels[len(train) :],
        notes=[*notes, *said],
    )


def _without_split(names: tuple[str, ...]) -> tuple[str, ...]:
    """The folders of an image without the first that names a split."""
    at = next((i for i, name in enumerate(names) if name.lower() in SPLIT_NAMES), len(names))
    return names[:at] + names[at + 1 :]


def _shared(folders: Sequence[tuple[str, ...]]) -> int:
    """How many folders all images lie in."""
    first, last = min(folders), max(folders)
    equal = [a == b for a, b in zip(first, last, strict=False)]
    return equal.index(False) if False in equal else len(equal)


def _printable(name: str) -> str:
    """A folder's name for a line of text."""
    return "".join(c if c.isprintable() else "?" for c in name)[:40]


def _classes(folders: Sequence[tuple[str, ...]]) -> tuple[list[int] | None, list[str]]:
    """(a class for each image or None, what is to be known of them)."""
    tops = [names[0] if names else "" for names in folders]
    sizes = Counter(tops)
    names = sorted(sizes)
    if len(names) < 2:
        return None, []
    if "" in sizes:
        return None, [f"no classes: {sizes['']} images lie in none of its subfolders"]
    if len(names) > MOST_CLASSES or len(tops) < MIN_IMAGES * len(names):
        few = f"its {len(names):,} subfolders hold {len(tops) / len(names):.3g} images on average"
        return None, [f"no classes: {few}; {MIN_IMAGES} are needed, in at most {MOST_CLASSES:,}"]
    small = [name for name in names if sizes[name] < MIN_IMAGES]
    note = f"{len(names)} classes from its subfolders"
    if small:
        shown = ", ".join(f"{_printable(name)} {sizes[name]}" for name in small[:3])
        more = f" and {len(small) - 3} more" if len(small) > 3 else ""
        note += f", {len(small)} of fewer than {MIN_IMAGES} images ({shown}{more})"
    number = {name: i for i, name in enumerate(names)}
    return [number[top] for top in tops], [note]
