"""Do files in each layout give the right images, and bad ones an error in one line?"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from standins import make_celeba, make_folder, make_mnist, picture, png, write_parquet
from tombola.data import checks, decode, download
from tombola.data.adapt import fit
from tombola.data.checks import check_source
from tombola.data.pixels import pixels
from tombola.data.sources import load_images, native_channels
from tombola.data.splits import SPLITS, split_indices
from tombola.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOMBOLA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TOMBOLA_DATA", raising=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as where it is not installed
    monkeypatch.setattr(checks, "can_download", lambda: False)


# --- parquet -------------------------------------------------------------------------------------


def test_mnist_layout(tmp_path: Path) -> None:
    drawn = make_mnist(tmp_path)
    images = load_images("mnist", (1, 32, 32), data_dir=tmp_path)
    assert [len(images.splits[s]) for s in SPLITS] == [27, 3, 10]
    assert images.note == "28x28 grey padded to 32x32"
    want = torch.stack([torch.from_numpy(np.array(image)) for image in drawn])
    where = split_indices(30, 3, 0)
    for split in ("train", "validation"):
        assert torch.equal(images.splits[split][:, 0, 2:30, 2:30], want[where[split]])
        assert torch.equal(images.labels[split], where[split] % 10)
    assert torch.equal(images.splits["judge"][:, 0, 2:30, 2:30], want[30:])
    assert torch.equal(images.labels["judge"], torch.arange(10))


def test_cifar10_layout_and_shards(tmp_path: Path) -> None:
    content = [png(picture(i, (32, 32))) for i in range(30)]
    for k in range(2):
        part = tmp_path / "cifar10" / f"train-0000{k}-of-00002.parquet"
        write_parquet(part, content[k * 10 : k * 10 + 10], "img")
    write_parquet(tmp_path / "cifar10" / "test-00000-of-00001.parquet", content[20:], "img")
    images = load_images("cifar10", (3, 32, 32), data_dir=tmp_path)
    assert [len(images.splits[s]) for s in SPLITS] == [18, 2, 10]
    assert native_channels("cifar10", tmp_path) == 3
    (tmp_path / "cifar10" / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(DataError, match=r"1 of 2 train files; put train-00000-of-00002.parquet"):
        check_source("cifar10", tmp_path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not there")
@pytest.mark.parametrize(("name", "channels"), [("mnist", 1), ("cifar10", 3)])
def test_real_files_pass_the_checks(name: str, channels: int) -> None:
    assert check_source(name, SHARED) == name
    rows = decode.ParquetImages([next((SHARED / name).glob("test-*.parquet"))])
    assert rows[0].shape[0] == channels
    assert rows.labels is not None
    assert rows.labels.unique().tolist() == list(range(10))


def test_parquet_errors_name_file_and_remedy(tmp_path: Path) -> None:
    make_mnist(tmp_path)
    path = tmp_path / "mnist" / "train-00000-of-00001.parquet"
    whole = path.read_bytes()

    path.write_bytes(whole[:-100])
    with pytest.raises(DataError, match=r"train-00000-of-00001.parquet is truncated"):
        check_source("mnist", tmp_path)

    path.write_bytes(b"PAR1" + b"\0" * (len(whole) - 40) + whole[-36:])
    with pytest.raises(DataError, match=r"truncated or not a parquet file"):
        load_images("mnist", (1, 28, 28), data_dir=tmp_path)

    images = [png(picture(i)) for i in range(30)]
    write_parquet(path, images, "picture")
    with pytest.raises(DataError, match=r"columns \(picture: struct.*label: int64\); wanted"):
        load_images("mnist", (1, 28, 28), data_dir=tmp_path)

    write_parquet(path, images, label=None)
    with pytest.raises(DataError, match="label: integer"):
        load_images("mnist", (1, 28, 28), data_dir=tmp_path)

    write_parquet(path, images, label=["a"] * 30)
    with pytest.raises(DataError, match="column label is not made of integers from 0"):
        load_images("mnist", (1, 28, 28), data_dir=tmp_path)

    write_parquet(path, [*images[:7], b"no picture", *images[8:]])
    with pytest.raises(DataError, match=r"cannot decode .*train-00000-of-00001.parquet, row 7"):
        load_images("mnist", (1, 28, 28), data_dir=tmp_path)


# --- missing files and downloads -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("mnist", "mnist/train-00000-of-00001.parquet and .*mnist/test-00000-of-00001.parquet"),
        ("cifar10", "cifar10/train-00000-of-00001.parquet"),
        ("celeba", r"celeba/img_align_celeba/\*.jpg with .*list_eval_partition.txt"),
    ],
)
def test_missing_files_say_which_to_put_where(tmp_path: Path, name: str, wanted: str) -> None:
    with pytest.raises(DataError, match=wanted) as caught:
        check_source(name, tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_the_missing_file_is_asked_for(tmp_path: Path) -> None:
    make_mnist(tmp_path)
    (tmp_path / "mnist" / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError) as caught:
        check_source("mnist", tmp_path)
    assert "test-00000-of-00001.parquet" in str(caught.value)
    assert "train-" not in str(caught.value)


def test_data_dir_must_be_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(DataError, match="is not a directory; give another --data-dir"):
        check_source("mnist", file)
    with pytest.raises(DataError, match="does not exist"):
        check_source("digits", tmp_path / "nowhere")
    monkeypatch.setenv("TOMBOLA_DATA", str(file))
    with pytest.raises(DataError, match="TOMBOLA_DATA"):
        check_source("mnist")


def test_environment_names_the_data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_mnist(tmp_path / "sets")
    monkeypatch.setenv("TOMBOLA_DATA", str(tmp_path / "sets"))
    assert check_source("mnist") == "mnist"


class FakeHub:
    """Stands for huggingface_hub: lists and 'downloads' the files of a folder."""

    def __init__(self, folder: Path, sha256: str | None = None) -> None:
        self.folder, self.sha256 = folder, sha256

    def HfApi(self) -> FakeHub:  # noqa: N802
        return self

    def list_repo_tree(self, repository: str, **_: object) -> list[object]:
        assert repository == "ylecun/mnist"
        paths = sorted(self.folder.glob("*.parquet"))
        return [type("Entry", (), {"path": f"mnist/{p.name}", "lfs": self.lfs(p)}) for p in paths]

    def lfs(self, path: Path) -> object:
        digest = self.sha256 or hashlib.sha256(path.read_bytes()).hexdigest()
        return type("Lfs", (), {"sha256": digest})

    def hf_hub_download(self, _: str, name: str, *, local_dir: Path, **__: object) -> str:
        target = local_dir / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((self.folder / Path(name).name).read_bytes())
        return str(target)


def with_hub(monkeypatch: pytest.MonkeyPatch, hub: FakeHub, reachable: bool = True) -> None:
    monkeypatch.setattr(checks, "can_download", lambda: True)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)  # type: ignore[arg-type]
    monkeypatch.setattr(download, "is_reachable", lambda url, seconds: reachable)


def test_download_puts_checked_files_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_mnist(tmp_path / "hub")
    with_hub(monkeypatch, FakeHub(tmp_path / "hub" / "mnist"))
    target = tmp_path / "sets"
    target.mkdir()
    images = load_images("mnist", (1, 28, 28), data_dir=target)
    assert len(images.splits["judge"]) == 10
    assert sorted(p.name for p in (target / "mnist").iterdir()) == [
        "test-00000-of-00001.parquet",
        "train-00000-of-00001.parquet",
    ]


def test_download_with_a_wrong_checksum_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_mnist(tmp_path / "hub")
    with_hub(monkeypatch, FakeHub(tmp_path / "hub" / "mnist", sha256="0" * 64))
    with pytest.raises(DataError, match=r"arrived with SHA-256 .*, not 0000000000000000"):
        load_images("mnist", (1, 28, 28))
    assert list((tmp_path / "cache" / "data" / "mnist").iterdir()) == []


def test_no_network_says_which_file_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_hub(monkeypatch, FakeHub(tmp_path), reachable=False)
    with pytest.raises(DataError, match=r"cannot be reached .*put there .*train-00000-of-00001"):
        load_images("mnist", (1, 28, 28))


def test_unreachable_address_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    assert not download.is_reachable("http://127.0.0.1:9", 3.0)


# --- celeba --------------------------------------------------------------------------------------


def test_celeba_partition_and_crop(tmp_path: Path) -> None:
    make_celeba(tmp_path)
    assert check_source("celeba", tmp_path) == "celeba"
    images = load_images("celeba", (3, 16, 16), data_dir=tmp_path)
    assert [len(images.splits[s]) for s in SPLITS] == [18, 2, 7]
    assert images.classes == 0
    assert images.labels["judge"] is None
    assert "218x178 colour cropped around the centre, scaled to 16x16" in images.note
    assert "1 listed images not present" in images.note
    with Image.open(tmp_path / "celeba" / "img_align_celeba" / "000024.jpg") as image:
        centre = image.crop((0, 20, 178, 198))
    want = fit(torch.from_numpy(np.array(centre)).permute(2, 0, 1)[None], (3, 16, 16))
    assert torch.equal(images.splits["judge"][:1], want)


def test_celeba_half_present_or_with_a_bad_list(tmp_path: Path) -> None:
    make_celeba(tmp_path, (8, 8))
    partition = tmp_path / "celeba" / "list_eval_partition.txt"
    text = partition.read_text()
    partition.write_text(text.replace("000002.jpg 0", "000002.jpg zero"))
    with pytest.raises(DataError, match=r"line 2: '000002.jpg zero' is not"):
        check_source("celeba", tmp_path)
    partition.unlink()
    with pytest.raises(DataError, match=r"list_eval_partition.txt is missing"):
        check_source("celeba", tmp_path)


# --- folder --------------------------------------------------------------------------------------


def test_folder_counts_other_files_and_splits(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "My pictures" / "deep", 24)
    (root / "notes.txt").write_text("no picture")
    (root / "._000.png").write_bytes(b"left by another system")
    spec = f"folder:{tmp_path / 'My pictures'}"
    assert check_source(spec) == "folder-My-pictures"
    images = load_images(spec, (3, 6, 6))
    assert [len(images.splits[s]) for s in SPLITS] == [20, 2, 2]
    assert images.note == "6x6 colour as it is; 2 other files skipped"
    where = split_indices(24, 2, 2)
    want = torch.stack([pixels(picture(int(i))) for i in where["judge"]])
    assert torch.equal(images.splits["judge"], want)


def test_folder_colour_is_decided_by_content(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "grey", 24, colour=False)
    for path in root.iterdir():
        Image.open(path).convert("RGB").save(path)
    assert native_channels(f"folder:{root}") == 1
    picture(99).save(root / "000.png")
    assert native_channels(f"folder:{root}") == 3


def test_folder_of_many_sizes(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "mixed", 12)
    for i in range(12, 24):
        picture(i, (5, 9), colour=False).save(root / f"{i:03d}.png")
    images = load_images(f"folder:{root}", (1, 8, 8))
    assert images.note == (
        "2 sizes from 5x9 to 6x6, colour and grey, cropped around the centre, scaled to 8x8, "
        "averaged to grey"
    )
    every = torch.zeros((24, 1, 8, 8), dtype=torch.uint8)
    for split, indices in split_indices(24, 2, 2).items():
        every[indices] = images.splits[split]
    small = pixels(picture(20, (5, 9), colour=False))[None]
    assert torch.equal(every[20:21], fit(small, (1, 8, 8)))


def test_broken_image_is_named_or_skipped(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "some", 24)
    before = load_images(f"folder:{root}", (3, 6, 6))
    index = int(split_indices(24, 2, 2)["train"][3])
    path = root / f"{index:03d}.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=rf"cannot decode .*{index:03d}.png: .*--skip-broken"):
        load_images(f"folder:{root}", (3, 6, 6))
    after = load_images(f"folder:{root}", (3, 6, 6), skip_broken=True)
    assert after.note.endswith("1 broken images skipped")
    assert torch.equal(after.splits["judge"], before.splits["judge"])
    kept = [i for i in range(20) if i != 3]
    assert torch.equal(after.splits["train"], before.splits["train"][kept])
    with pytest.raises(DataError, match="--skip-broken"):  # what was skipped is not cached as whole
        load_images(f"folder:{root}", (3, 6, 6))


@pytest.mark.parametrize(
    ("count", "text"), [(0, "holds no image"), (1, "holds 1 image;"), (19, "holds 19 images")]
)
def test_small_folders_are_refused(tmp_path: Path, count: int, text: str) -> None:
    root = make_folder(tmp_path / "few", count)
    (root / "readme.txt").write_text("")
    with pytest.raises(DataError, match=f"{text}.*at least 20"):
        check_source(f"folder:{root}")


def test_all_broken_folder_is_refused(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "bad", 24)
    for path in root.iterdir():
        path.write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"cannot decode .*000.png"):
        load_images(f"folder:{root}", (3, 6, 6))
    with pytest.raises(DataError, match="broken images left out, holds no image"):
        load_images(f"folder:{root}", (3, 6, 6), skip_broken=True)


def test_linked_directories_are_read_once(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "a" / "b", 24).parent
    (root / "b" / "loop").symlink_to(root)
    assert [len(v) for v in load_images(f"folder:{root}", (3, 6, 6)).splits.values()] == [20, 2, 2]


def test_links_to_folders_elsewhere_are_not_followed_and_told(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "given", 24)
    before = load_images(f"folder:{root}", (3, 6, 6))
    (root / "all").symlink_to(make_folder(tmp_path / "private", 30))
    after = load_images(f"folder:{root}", (3, 6, 6))
    assert after.note == "6x6 colour as it is; 1 links to folders outside of it not followed"
    assert after.sha256 == before.sha256
    (tmp_path / "farm").mkdir()
    (tmp_path / "farm" / "all").symlink_to(tmp_path / "private")
    with pytest.raises(DataError, match=r"no image; .*; 1 links to folders outside of it are not"):
        check_source(f"folder:{tmp_path / 'farm'}")


# --- names ---------------------------------------------------------------------------------------


def test_unknown_names_show_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'mnst'; did you mean mnist\?"):
        check_source("mnst")
    with pytest.raises(ConfigError, match=f"give folder:{tmp_path}"):
        check_source(str(tmp_path))
    with pytest.raises(DataError, match="names no path"):
        check_source("folder:")
    with pytest.raises(DataError, match="does not exist"):
        check_source(f"folder:{tmp_path}/nowhere")
    file = tmp_path / "file.png"
    file.write_text("")
    with pytest.raises(DataError, match="is not a directory"):
        check_source(f"folder:{file}")


def test_checks_import_nothing_heavy() -> None:
    code = (
        "import sys; from tombola.data.checks import check_source; check_source('digits');"
        "bad = {'torch', 'numpy', 'pyarrow', 'PIL', 'safetensors'} & set(sys.modules);"
        "sys.exit(', '.join(bad) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_download_that_was_cut_off_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_mnist(tmp_path / "hub")
    source = tmp_path / "hub" / "mnist"
    train = source / "train-00000-of-00001.parquet"
    shutil.copy(train, source / "train-00000-of-00002.parquet")
    train.rename(source / "train-00001-of-00002.parquet")
    with_hub(monkeypatch, FakeHub(source))
    target = tmp_path / "sets"
    (target / "mnist").mkdir(parents=True)
    shutil.copy(source / "train-00000-of-00002.parquet", target / "mnist")
    assert checks.parquet_files("mnist", target) is None
    load_images("mnist", (1, 28, 28), data_dir=target)
    assert len(list((target / "mnist").iterdir())) == 3
    (target / "mnist" / "train-00001-of-00002.parquet").unlink()
    with_hub(monkeypatch, FakeHub(source), reachable=False)
    with pytest.raises(DataError, match=r"holds 1 of 2 train files; put .*, since .* cannot be re"):
        load_images("mnist", (1, 32, 32), data_dir=target)


def test_grey_or_colour_is_asked_of_images_of_every_folder(tmp_path: Path) -> None:
    for name, mode, count in (("a", "L", 20), ("b", "RGB", 40)):
        (tmp_path / name).mkdir()
        for index in range(count):
            colour = 90 if mode == "L" else (index, 200, 10)
            Image.new(mode, (8, 8), colour).save(tmp_path / name / f"{index:02}.png")
    assert native_channels(f"folder:{tmp_path}") == 3
