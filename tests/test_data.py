"""Are images adapted, split, hashed and cached as the contract says?"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from standins import make_folder, make_mnist, picture
from tombola.config.registry import DATA
from tombola.data import cache, checks, decode
from tombola.data.adapt import fit
from tombola.data.checks import check_source
from tombola.data.pixels import pixels
from tombola.data.sources import load_images, native_channels, save_tensor_source
from tombola.data.splits import SPLITS, Images, Raw, data_hash, split_indices
from tombola.errors import ConfigError, DataError, UserError

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOMBOLA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TOMBOLA_DATA", raising=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as where it is not installed
    monkeypatch.setattr(checks, "can_download", lambda: False)


# --- splits and hash -----------------------------------------------------------------------------


def test_split_indices_follow_the_hash_of_the_index() -> None:
    ranked = sorted(range(50), key=lambda i: hashlib.sha256(f"split/{i}".encode()).hexdigest())
    split = split_indices(50, 5, 7)
    assert split["judge"].tolist() == sorted(ranked[:7])
    assert split["validation"].tolist() == sorted(ranked[7:12])
    assert split["train"].tolist() == sorted(ranked[12:])


def sorted_by_class(count: int, classes: int = 10) -> Images:
    """Images in the order of their classes, as a folder of class folders gives them."""
    labels = torch.arange(count) * classes // count
    images = labels.to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
    splits, numbers = dict.fromkeys(SPLITS, images), dict.fromkeys(SPLITS, labels)
    return Images("sorted", splits, numbers, classes, "0" * 64, "")


@pytest.mark.parametrize("split", ["judge", "validation"])
def test_the_first_images_of_a_split_are_of_all_classes(split: str) -> None:
    given = sorted_by_class(2000)
    whole, labels = given.first(split)
    assert labels is not None
    assert sorted(labels.tolist()) == given.labels[split].tolist()  # type: ignore[union-attr]
    for count in (100, 101, 137, 500, 1999):
        some, numbers = given.first(split, count)
        assert numbers is not None
        assert set(numbers.tolist()) == set(range(10))
        assert torch.equal(some[:, 0, 0, 0].long(), numbers)  # labels move along
        assert torch.equal(some, whole[:count])  # fewer are the first of more
    order = sorted(range(2000), key=lambda i: hashlib.sha256(f"{split}/{i}".encode()).digest())
    assert labels.tolist() == [i // 200 for i in order]
    none, no_labels = dataclasses.replace(given, labels={}).first(split, 3)
    assert (len(none), no_labels) == (3, None)


def test_data_hash_is_as_documented_and_sees_labels_and_split() -> None:
    splits = {s: torch.full((1, 1, 1, 2), i, dtype=torch.uint8) for i, s in enumerate(SPLITS)}
    labels: dict[str, Tensor | None] = {s: torch.tensor([i]) for i, s in enumerate(SPLITS)}
    digest = hashlib.sha256()
    for i, name in enumerate(("train", "validation", "judge")):
        digest.update(f"{name}:(1, 1, 1, 2):".encode() + bytes([i, i]))
        digest.update(b"labels:" + i.to_bytes(8, "little"))
    assert data_hash(splits, labels) == digest.hexdigest()
    swapped = {**splits, "train": splits["judge"], "judge": splits["train"]}
    assert data_hash(swapped, labels) != digest.hexdigest()
    assert data_hash(splits, dict.fromkeys(SPLITS)) != digest.hexdigest()


# --- digits --------------------------------------------------------------------------------------


def test_digits_splits_values_and_hash() -> None:
    images = load_images("digits", (1, 8, 8))
    assert {k: tuple(v.shape) for k, v in images.splits.items()} == {
        "train": (1200, 1, 8, 8),
        "validation": (237, 1, 8, 8),
        "judge": (360, 1, 8, 8),
    }
    assert images.classes == 10
    assert native_channels("digits") == 1
    every = torch.cat(list(images.splits.values()))
    # round(v * 255 / 16) for v in 0..16
    assert every.unique().tolist() == [
        0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159, 175, 191, 207, 223, 239, 255,
    ]  # fmt: skip
    counts = torch.cat([v for v in images.labels.values() if v is not None]).bincount()
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert images.note == "8x8 grey as it is"
    first = images.splits["train"][0, 0, 2].tolist()  # row 2 of image 0: 0 3 15 2 0 11 8 0
    assert first == [0, 48, 239, 32, 0, 175, 128, 0]


def test_digits_hash_is_pinned() -> None:
    """Run hashes and the shipped judge stand on this one; a change must be said in CHANGELOG."""
    found = load_images("digits", (1, 32, 32)).sha256
    assert found == "1187314147630c203538ab8c3a9b83415f7994e6747f4ec2872b4ee51b86d724"


def test_digits_attribution_is_shipped() -> None:
    files = ROOT / "src" / "tombola" / "data" / "files"
    text = (files / "digits-ATTRIBUTION.txt").read_text()
    assert "10.24432/C50P49" in text
    assert "CC BY 4.0" in text
    assert (files / "digits.npz").stat().st_size < 60_000


# --- adapting ------------------------------------------------------------------------------------


def test_fit_pads_28_to_32_with_zeros() -> None:
    image = torch.full((1, 1, 28, 28), 7, dtype=torch.uint8)
    padded = fit(image, (1, 32, 32))
    assert torch.equal(padded[:, :, 2:30, 2:30], image)
    assert int(padded.sum()) == 7 * 28 * 28


def test_fit_averages_colour_and_repeats_grey() -> None:
    colour = torch.tensor([10, 20, 32], dtype=torch.uint8).reshape(1, 3, 1, 1)
    assert fit(colour, (1, 1, 1)).flatten().tolist() == [21]  # 62 / 3 = 20.67
    grey = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8).reshape(1, 1, 2, 2)
    assert torch.equal(fit(grey, (3, 2, 2)), grey.expand(1, 3, 2, 2))


def test_fit_crops_the_centre_before_scaling() -> None:
    wide = torch.zeros((1, 1, 2, 6), dtype=torch.uint8)
    wide[..., 2:4] = 200
    assert fit(wide, (1, 2, 2)).unique().tolist() == [200]
    tall = torch.arange(218, dtype=torch.uint8).reshape(1, 1, 218, 1).expand(1, 1, 218, 178)
    assert fit(tall, (1, 178, 178))[0, 0, :, 0].tolist() == list(range(20, 198))


def test_fit_scales_bilinear_and_antialiased() -> None:
    # Halving with a triangle of width 4 has weights 1/8 3/8 3/8 1/8 inside, 3/7 3/7 1/7 at the rim.
    row = torch.tensor([0, 80, 160, 240], dtype=torch.uint8)
    halved = fit(row.expand(1, 1, 4, 4), (1, 2, 2))
    assert halved[0, 0, 0].tolist() == [57, 183]  # 400 / 7 = 57.14, 1280 / 7 = 182.86
    big = torch.randint(0, 256, (2, 3, 20, 20), dtype=torch.uint8)
    exact = functional.interpolate(big.double(), (7, 7), mode="bilinear", antialias=True)
    assert torch.equal(fit(big, (3, 7, 7)), exact.round().to(torch.uint8))


def test_pixels_of_every_kind_of_picture() -> None:
    deep = Image.fromarray(np.array([[0, 257, 65535]], dtype=np.uint16))
    assert pixels(deep).tolist() == [[[0, 1, 255]]]
    clear = Image.new("RGBA", (1, 1), (10, 20, 30, 0))
    assert pixels(clear).flatten().tolist() == [255, 255, 255]
    palette = Image.new("P", (1, 1), 0)
    palette.putpalette([9, 8, 7])
    assert pixels(palette).flatten().tolist() == [9, 8, 7]
    assert pixels(torch.tensor([[0.0, 0.5, 1.0]])).flatten().tolist() == [0, 128, 255]
    assert pixels(np.full((1, 2, 3), 4, dtype=np.uint8)).shape == (3, 1, 2)
    with pytest.raises(ValueError, match=r"\[-1, 1\], not in \[0, 1\]"):
        pixels(torch.tensor([[-1.0, 1.0]]))


def test_pixels_are_turned_as_exif_says() -> None:
    image = Image.new("L", (16, 8), 0)
    exif = image.getexif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    assert pixels(Image.open(buffer)).shape == (1, 16, 8)


# --- from Python ---------------------------------------------------------------------------------


def test_tensor_source_round_trip(tmp_path: Path) -> None:
    tensor = torch.randint(0, 256, (40, 1, 4, 4), dtype=torch.uint8)
    labels = torch.arange(40) % 3
    spec = save_tensor_source((tensor, labels), tmp_path / "new" / "a.safetensors")
    assert spec == f"tensor:{tmp_path / 'new' / 'a.safetensors'}"
    name = check_source(spec)
    assert len(name.removeprefix("tensor-")) == 8
    images = load_images(spec, (1, 4, 4))
    where = split_indices(40, 4, 4)
    for split in SPLITS:
        assert torch.equal(images.splits[split], tensor[where[split]])
        assert torch.equal(images.labels[split], labels[where[split]])
    assert (images.name, images.classes, native_channels(spec)) == (name, 3, 1)
    again = save_tensor_source((tensor, labels), tmp_path / "b.safetensors")
    assert check_source(again) == name
    first, second = (Path(s.removeprefix("tensor:")).read_bytes() for s in (spec, again))
    assert first == second
    tensor[0, 0, 0, 0] ^= 1
    assert check_source(save_tensor_source(tensor, tmp_path / "c.safetensors")) != name


class Pictures(torch.utils.data.Dataset[tuple[Image.Image, int]]):
    """A data set of pictures with labels, as torchvision has them."""

    def __len__(self) -> int:
        return 25

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return picture(index), index % 2


def test_dataset_becomes_a_tensor_source(tmp_path: Path) -> None:
    images = load_images(save_tensor_source(Pictures(), tmp_path / "d.safetensors"), (3, 6, 6))
    where = split_indices(25, 2, 2)["train"]
    assert torch.equal(images.splits["train"][4], pixels(picture(int(where[4]))))
    assert torch.equal(images.labels["train"], where % 2)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (torch.zeros(30, 8, 8, dtype=torch.uint8), r"shape \(30, 8, 8\) is not allowed"),
        (torch.zeros(30, 2, 8, 8, dtype=torch.uint8), "1 or 3 channels"),
        (torch.full((30, 1, 8, 8), -1.0), r"not in \[0, 1\]"),
        (torch.zeros(30, 1, 8, 8, dtype=torch.int64), "torch.int64, not uint8"),
        ((torch.zeros(30, 1, 8, 8, dtype=torch.uint8), [0, 1]), "one integer from 0 for every"),
        ((torch.zeros(2, 1, 8, 8, dtype=torch.uint8), [0, -1]), "one integer from 0 for every"),
        ([torch.zeros(1, 2, 2), torch.zeros(1, 3, 3)], "2 sizes"),
        ([picture(0), "no picture"], "image 1: ValueError: a str is not an image"),
        (7, "a int is not a data source"),
    ],
)
def test_bad_images_from_python(tmp_path: Path, given: object, text: str) -> None:
    with pytest.raises(DataError, match=text):
        save_tensor_source(given, tmp_path / "bad.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_small_or_unsound_tensor_files(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensor_source(torch.zeros(19, 1, 4, 4, dtype=torch.uint8), path)
    with pytest.raises(DataError, match="holds 19 images; at least 20 are needed"):
        load_images(f"tensor:{path}", (1, 4, 4))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match="is truncated"):
        check_source(f"tensor:{path}")
    path.write_bytes(b"\x80\x04 a pickle or so")
    with pytest.raises(DataError, match="is not a safetensors file"):
        check_source(f"tensor:{path}")
    path.write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(DataError, match="is not a safetensors file with a tensor 'images'"):
        check_source(f"tensor:{path}")
    with pytest.raises(DataError, match="cannot read tensor file"):
        check_source(f"tensor:{tmp_path / 'nowhere'}")


USER_SOURCE = """
import torch
from tombola.data.sources import Raw

def plain():
    return torch.arange(30, dtype=torch.uint8).reshape(30, 1, 1, 1)

def labelled(data_dir):
    assert data_dir is None
    return plain(), torch.arange(30) % 3

def official(data_dir):
    return Raw(train=plain(), test=[torch.full((1, 2, 2), 99, dtype=torch.uint8)] * 3)

def broken():
    raise RuntimeError("out of luck")
"""


def test_source_in_a_users_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(USER_SOURCE)
    assert check_source(f"{path}:labelled") == "mine-labelled"
    where = split_indices(30, 3, 3)
    plain = load_images(f"{path}:plain", (1, 1, 1))
    assert plain.splits["validation"].flatten().tolist() == where["validation"].tolist()
    labelled = load_images(f"{path}:labelled", (1, 1, 1))
    assert torch.equal(labelled.labels["train"], where["train"] % 3)
    assert native_channels(f"{path}:labelled") == 1
    official = load_images(f"{path}:official", (1, 2, 2))
    assert [len(official.splits[s]) for s in SPLITS] == [27, 3, 3]
    assert official.splits["judge"].unique().tolist() == [99]
    with pytest.raises(DataError, match="failed: RuntimeError: out of luck"):
        load_images(f"{path}:broken", (1, 1, 1))
    with pytest.raises(ConfigError, match=r"did you mean plain\?"):
        check_source(f"{path}:plane")


def test_registered_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DATA, "_entries", dict(DATA._entries))

    @DATA.register("my-data")
    def source(data_dir: Path | None) -> Raw:
        return Raw(train=Pictures(), notes=("made up",))

    assert check_source("my-data") == "my-data"
    images = load_images("my-data", (3, 6, 6))
    assert (images.name, images.classes, images.note) == (
        "my-data",
        2,
        "6x6 colour as it is; made up",
    )


# --- cache ---------------------------------------------------------------------------------------


def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts decoded ranges from now on."""
    calls: list[int] = []
    real = decode._adapt_range

    def counted(items: object, indices: range, *rest: object) -> None:
        calls.append(len(indices))
        real(items, indices, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(decode, "_adapt_range", counted)
    return calls


def test_second_start_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_mnist(tmp_path)
    calls = decoded(monkeypatch)
    first = load_images("mnist", (1, 32, 32), data_dir=tmp_path)
    assert calls == [30, 10]
    second = load_images("mnist", (1, 32, 32), data_dir=tmp_path)
    assert calls == [30, 10]
    assert (first.sha256, first.note, first.classes) == (
        second.sha256,
        second.note,
        second.classes,
    )
    for split in SPLITS:
        assert torch.equal(first.splits[split], second.splits[split])
        assert torch.equal(first.labels[split], second.labels[split])
    assert data_hash(second.splits, second.labels) == second.sha256
    load_images("mnist", (1, 28, 28), data_dir=tmp_path)
    assert calls == [30, 10, 30, 10]


def test_changed_files_are_decoded_again_and_replace_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder(tmp_path / "some", 24)
    first = load_images(f"folder:{root}", (3, 6, 6))
    picture(500).save(root / "005.png")
    second = load_images(f"folder:{root}", (3, 6, 6))
    assert second.sha256 != first.sha256
    (root / "more.txt").write_text("")
    assert "1 other files" in load_images(f"folder:{root}", (3, 6, 6)).note
    assert len(list((tmp_path / "cache" / "images").iterdir())) == 1


def test_damaged_or_unusable_cache_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_mnist(tmp_path)
    first = load_images("mnist", (1, 28, 28), data_dir=tmp_path)
    (stored,) = (tmp_path / "cache" / "images").iterdir()
    stored.write_bytes(stored.read_bytes()[:-10])
    assert load_images("mnist", (1, 28, 28), data_dir=tmp_path).sha256 == first.sha256
    whole = bytearray(stored.read_bytes())
    for position in (-10, whole.index(b"note"), whole.index(b"classes")):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        stored.write_bytes(damaged)
        again = load_images("mnist", (1, 28, 28), data_dir=tmp_path)
        assert torch.equal(again.splits["train"], first.splits["train"])
        assert stored.read_bytes() != damaged
    file = tmp_path / "a file"
    file.write_text("")
    monkeypatch.setenv("TOMBOLA_CACHE", str(file))
    assert load_images("mnist", (1, 28, 28), data_dir=tmp_path).sha256 == first.sha256


def test_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "save_file", fail)
    make_mnist(tmp_path)
    load_images("mnist", (1, 28, 28), data_dir=tmp_path)
    assert list((tmp_path / "cache" / "images").iterdir()) == []


def test_progress_counts_up(tmp_path: Path) -> None:
    make_mnist(tmp_path)
    seen: list[tuple[int, int]] = []
    load_images(
        "mnist",
        (1, 28, 28),
        data_dir=tmp_path,
        progress=lambda done, every: seen.append((done, every)),
    )
    assert seen == [(30, 30), (10, 10)]


def test_every_error_is_one_line(tmp_path: Path) -> None:
    specs = ["mnst", "folder:", f"folder:{tmp_path}", "tensor:x", "mnist", "celeba", "x.py:NAME"]
    for spec in specs:
        with pytest.raises(UserError) as caught:
            check_source(spec, tmp_path)
        assert "\n" not in str(caught.value)
