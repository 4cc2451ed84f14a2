"""Are folders for splits and classes, and labels that are ids, told apart and told?"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from standins import make_folder
from tombola.data.layout import read_layout
from tombola.data.sources import load_images, save_tensor_source
from tombola.data.splits import SPLITS, Images, Raw, assemble, split_indices
from tombola.errors import DataError


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TOMBOLA_CACHE", str(tmp_path / "cache"))


def tree(root: Path, **counts: int) -> Path:
    """A folder of images for each name, in which __ stands for a folder in a folder."""
    for name, count in counts.items():
        make_folder(root / name.replace("__", "/"), count)
    return root


def read(root: Path, **counts: int) -> Images:
    return load_images(f"folder:{tree(root, **counts)}", (3, 6, 6))


def paths_of(root: Path, *names: str) -> list[Path]:
    return sorted(root / name for name in names)


# --- splits --------------------------------------------------------------------------------------


def test_test_images_judge_and_are_never_trained_on(tmp_path: Path) -> None:
    found = read(tmp_path / "x", train__cats=30, train__dogs=20, test__cats=12, test__dogs=14)
    assert [len(found.splits[split]) for split in SPLITS] == [45, 5, 26]
    assert found.note == (
        "6x6 colour as it is; splits from its subfolders: 50 images to train and validate, "
        "26 of test to judge; 2 classes from its subfolders"
    )
    alone = load_images(f"folder:{tmp_path / 'x' / 'test'}", (3, 6, 6))  # in the same order
    where = {split: split_indices(26, 2, 2)[split] for split in SPLITS}
    for split in SPLITS:
        assert torch.equal(found.splits["judge"][where[split]], alone.splits[split])
    assert found.classes == 2
    counts = {split: found.labels[split].bincount().tolist() for split in SPLITS}
    assert counts["judge"] == [12, 14]
    assert [a + b for a, b in zip(counts["train"], counts["validation"], strict=True)] == [30, 20]


@pytest.mark.parametrize(
    ("names", "train", "test", "left"),
    [
        (("Train/1.png", "VALID/2.png"), ("Train/1.png",), ("VALID/2.png",), 0),
        (("a/training/1.png", "a/testing/2.png"), ("a/training/1.png",), ("a/testing/2.png",), 0),
        (("train/1.png", "test/2.png", "val/3.png"), ("train/1.png",), ("test/2.png",), 1),
        (("train/1.png", "test/2.png", "3.png", "a/4.png"), ("train/1.png",), ("test/2.png",), 2),
        (("cat/train/1.png", "dog/test/2.png"), ("cat/train/1.png",), ("dog/test/2.png",), 0),
        (("train/test/1.png", "test/train/2.png"), ("train/test/1.png",), ("test/train/2.png",), 0),
    ],
)  # fmt: skip
def test_folders_for_splits(names, train, test, left) -> None:
    root = Path("/x")
    found = read_layout(root, paths_of(root, *names))
    assert (list(found.train), list(found.test)) == (paths_of(root, *train), paths_of(root, *test))
    assert any(f"{left} images in neither left out" in note for note in found.notes) == bool(left)
    assert found.notes[0].startswith("splits from its subfolders: 1 images")


@pytest.mark.parametrize(
    "names",
    [
        ("train/1.png", "car/2.png"),  # a locomotive
        ("test/1.png", "test/2.png"),
        ("train.png", "test.png"),
        ("contest/1.png", "training set/2.png"),
    ],
)
def test_what_is_no_folder_for_a_split(names) -> None:
    root = Path("/x")
    found = read_layout(root, paths_of(root, *names))
    assert (list(found.train), found.test) == (paths_of(root, *names), ())


def test_test_and_validation_without_training_are_refused() -> None:
    root = Path("/x")
    with pytest.raises(DataError, match="none for training; name the one to train on"):
        read_layout(root, paths_of(root, "test/1.png", "val/2.png"))


def test_classes_below_what_all_images_share() -> None:
    root = Path("/x")
    split = {"train": 15, "test": 5}
    names = [f"data/{s}/{k}/{i}.png" for s in split for k in "ab" for i in range(split[s])]
    found = read_layout(root, paths_of(root, *names))
    assert (found.labels, found.test_labels) == ([0] * 15 + [1] * 15, [0] * 5 + [1] * 5)


# --- classes -------------------------------------------------------------------------------------


def test_one_small_class_costs_no_other_its_labels(tmp_path: Path) -> None:
    found = read(tmp_path / "x", a=60, b=40, c=30, d=19)
    assert found.classes == 4
    counts = torch.cat([v for v in found.labels.values() if v is not None]).bincount()
    assert counts.tolist() == [60, 40, 30, 19]
    assert found.remarks == "4 classes from its subfolders, 1 of fewer than 20 images (d 19)"


def test_subfolders_that_are_no_classes_are_told(tmp_path: Path) -> None:
    found = read(tmp_path / "x", a=20, b=20)
    assert (found.classes, found.remarks) == (2, "2 classes from its subfolders")
    (tmp_path / "x" / "a" / "000.png").unlink()
    found = read(tmp_path / "y", a=20, b=19)
    assert found.classes == 0
    assert found.remarks.startswith("no classes: its 2 subfolders hold 19.5 images on average; 20")
    (tmp_path / "y" / "a" / "000.png").rename(tmp_path / "y" / "top.png")
    assert read(tmp_path / "y").remarks == "no classes: 1 images lie in none of its subfolders"


def test_names_of_folders_do_not_steer_a_terminal() -> None:
    root = Path("/x")
    names = [f"a/{i}.png" for i in range(40)] + [f"b\x1b[31m{'c' * 99}/1.png"]
    (note,) = read_layout(root, paths_of(root, *names)).notes
    assert note.endswith(f"(b?[31m{'c' * 34} 1)")


# --- labels --------------------------------------------------------------------------------------


def of_labels(tmp_path: Path, labels: list[int]) -> Images:
    images = torch.randint(0, 256, (len(labels), 1, 4, 4), dtype=torch.uint8)
    spec = save_tensor_source((images, torch.tensor(labels)), tmp_path / "x.safetensors")
    return load_images(spec, (1, 4, 4))


def test_labels_that_are_ids_are_numbered_in_their_order(tmp_path: Path) -> None:
    found = of_labels(tmp_path, [10**9, 7, 0] * 20)
    assert found.classes == 3
    where = split_indices(60, 6, 6)
    for split in SPLITS:
        assert torch.equal(found.labels[split], 2 - where[split] % 3)
    assert found.remarks == "labels are ids, taken for 3 classes"


def test_labels_that_number_classes_stay_as_they_are(tmp_path: Path) -> None:
    """One that is in no image included: a class has one number in all parts of a data set."""
    found = of_labels(tmp_path, [0, 1, 59] * 20)
    assert (found.classes, found.remarks) == (60, "")
    assert {int(v) for v in torch.cat(list(found.labels.values()))} == {0, 1, 59}


def test_ids_mean_the_same_in_training_and_test() -> None:
    images = torch.randint(0, 256, (30, 1, 4, 4), dtype=torch.uint8)
    raw = Raw(
        train=images, labels=[5000, 70] * 15, test=images[:4], test_labels=[70, 900, 5000, 70]
    )
    found = assemble("x", raw, (1, 4, 4))
    assert found.labels["judge"].tolist() == [0, 1, 2, 0]
    assert {int(v) for v in found.labels["train"]} == {0, 2}
    assert found.classes == 3


def test_too_many_classes_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tombola.data.splits.MOST_CLASSES", 50)
    with pytest.raises(DataError, match="labels of 51 kinds; at most 50 classes can be told apart"):
        of_labels(tmp_path, list(range(51)))
    assert of_labels(tmp_path, [0, 50] * 30).classes == 2  # in use there are few


@pytest.mark.parametrize("labels", [[2**64] * 30, [-(2**63) - 1] * 30, ["a"] * 30])
def test_labels_that_are_no_numbers_of_64_bits(tmp_path: Path, labels: list[object]) -> None:
    images = torch.zeros(30, 1, 4, 4, dtype=torch.uint8)
    with pytest.raises(DataError, match="labels are no integers of 64 bits"):
        save_tensor_source((images, labels), tmp_path / "x.safetensors")
