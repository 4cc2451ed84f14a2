"""Is white where the files have it, and can a stranger's image file do harm?"""

from __future__ import annotations

import io
import json
import os
import threading
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import in_process
from standins import make_folder, picture, png, write_parquet
from tombola.cli import command_line as cli
from tombola.data import decode
from tombola.data import pixels as of_pixels
from tombola.data.decode import ImageFiles, ParquetImages, adapt_all
from tombola.data.pixels import decode_image, pixels
from tombola.data.sources import load_images, save_tensor_source
from tombola.errors import DataError


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TOMBOLA_CACHE", str(tmp_path / "cache"))


def make_deep(root: Path, highest: int, kind: type, suffix: str = "png") -> str:
    """24 images of random values up to ``highest``; returns their spec."""
    root.mkdir()
    for i in range(24):
        values = np.random.default_rng(i).integers(0, highest + 1, (6, 6))
        values[0, :2] = 0, highest
        Image.fromarray(values.astype(kind)).save(root / f"{i:02d}.{suffix}")
    return f"folder:{root}"


# --- which value is white ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("highest", "kind", "suffix", "full"),
    [(1, np.uint8, "png", 255), (255, np.uint16, "tif", 65535), (4095, np.uint16, "png", 65535)],
)
def test_a_sliver_of_the_range_is_told_and_may_be_scaled(
    tmp_path: Path, highest: int, kind: type, suffix: str, full: int
) -> None:
    spec = make_deep(tmp_path / "x", highest, kind, suffix)
    dark = load_images(spec, (1, 6, 6))
    assert dark.remarks == (
        f"little contrast: all pixel values are from 0 to {highest}, white being {full} "
        f"(where white is {highest}, say so: --set data.white={highest})"
    )
    assert int(dark.splits["train"].max()) == round(highest * 255 / full)
    light = load_images(spec, (1, 6, 6), white=highest)
    assert light.remarks == ""
    assert [int(f(light.splits["train"])) for f in (torch.min, torch.max)] == [0, 255]
    first = np.asarray(Image.open(tmp_path / "x" / f"00.{suffix}")).astype(float)
    exact = torch.from_numpy(np.rint(first * 255 / highest)).to(torch.uint8)
    assert torch.equal(pixels(Image.open(tmp_path / "x" / f"00.{suffix}"), highest)[0], exact)


def test_sound_images_are_not_remarked_on_and_keep_their_hash(tmp_path: Path) -> None:
    spec = f"folder:{make_folder(tmp_path / 'x', 24)}"
    plain = load_images(spec, (3, 6, 6))
    assert plain.remarks == ""
    assert plain.sha256 == "0d076a96863d0e9b379aa0d5e20eb42a78c8a5ed31add6c991d93f18d8aaa560"
    assert load_images(spec, (3, 6, 6), white=255).sha256 == plain.sha256
    deep = make_deep(tmp_path / "y", 65535, np.uint16)
    assert load_images(deep, (1, 6, 6)).sha256 == load_images(deep, (1, 6, 6), white=65535).sha256


@pytest.mark.parametrize(
    ("low", "high", "said"), [(0, 127, True), (0, 128, False), (200, 255, True), (64, 191, True)]
)
def test_less_than_half_of_the_range_is_little(
    tmp_path: Path, low: int, high: int, said: bool
) -> None:
    images = torch.full((24, 1, 4, 4), low, dtype=torch.uint8)
    images[3, 0, 0, 0] = high
    found = load_images(save_tensor_source(images, tmp_path / "x.safetensors"), (1, 4, 4))
    assert (f"from {low} to {high}, white being 255" in found.remarks) == said


def test_the_range_is_that_of_training_and_test_images_and_of_floats(tmp_path: Path) -> None:
    source = tmp_path / "mine.py"
    source.write_text(
        "import torch\nfrom tombola.data.sources import Raw\n"
        "def both():\n    dark = torch.zeros(24, 1, 4, 4, dtype=torch.uint8)\n"
        "    return Raw(train=dark, test=dark + 255)\n"
        "def floats():\n    return [torch.full((4, 4), 0.1)] * 24\n"
    )
    assert load_images(f"{source}:both", (1, 4, 4)).remarks == ""
    said = "little contrast: all pixel values are from 26 to 26, white being 255"
    assert load_images(f"{source}:floats", (1, 4, 4)).remarks == said


def test_values_above_white_are_no_white(tmp_path: Path) -> None:
    spec = make_deep(tmp_path / "x", 4095, np.uint16)
    with pytest.raises(
        DataError, match=r"00.png: .*value is 4095, above data.white = 255; replace"
    ):
        load_images(spec, (1, 6, 6), white=255)
    tensor = save_tensor_source(torch.full((24, 1, 4, 4), 9, dtype=torch.uint8), tmp_path / "t")
    with pytest.raises(DataError, match=r"brightest value is 9, above data.white = 1"):
        load_images(tensor, (1, 4, 4), white=1)


def test_what_is_known_of_the_data_is_said_before_a_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = make_deep(tmp_path / "x", 4095, np.uint16)
    task = f"{Path(__file__).parent / 'toy_task.py'}:TinyAE"
    words = "--steps 12 --rounds 1 --rate 0.5 --seeds 1 --rewind 2it --controls none --threads 1"
    argv = ["find", task, "--data", spec, *words.split(), "--workers", "1", "--device", "cpu"]
    in_process.use(monkeypatch)
    notes = []
    for more in ([], ["--set", "data.white=4095"]):
        out = tmp_path / f"out{len(more)}"
        with in_process.Restored():
            assert cli.main([*argv, *more, "--out", str(out)]) == 0
        notes.append(json.loads((out / "config.json").read_text())["resolved"]["data_note"])
        said = [line for line in capsys.readouterr().err.splitlines() if "note:" in line]
        assert said == ([] if more else [f"note: folder-x: {notes[0].partition('; ')[2]}"])
    assert "little contrast: all pixel values are from 0 to 4095, white being 65535" in notes[0]
    assert notes[1] == "6x6 grey scaled to 8x8"


# --- strangers' images ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["EPS", "PDF", "PCX", "TGA", "ICO", "SGI", "JPEG2000"])
def test_no_reader_but_of_the_kinds_that_are_looked_for(tmp_path: Path, kind: str) -> None:
    """Whatever the file is called: the reader of PostScript starts a program of its own."""
    path = tmp_path / "zz.png"
    picture(0, (32, 32)).save(path, kind)
    with pytest.raises(Image.UnidentifiedImageError):
        ImageFiles([path])[0]
    write_parquet(tmp_path / "a.parquet", [path.read_bytes()])
    with pytest.raises(Image.UnidentifiedImageError):
        ParquetImages([tmp_path / "a.parquet"])[0]


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "webp", "tif", "ppm"])
def test_every_kind_that_is_looked_for_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    picture(0, (32, 32)).save(path)
    assert ImageFiles([path])[0].shape == (3, 32, 32)


def huge_png(width: int, height: int) -> bytes:
    """A grey PNG of so many pixels, in a few bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return len(data).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    data = zlib.compress(bytes(width + 1) * min(height, 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_images_that_would_fill_the_memory_are_refused_before_they_are_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert decode_image(io.BytesIO(huge_png(100, 100))).shape == (1, 100, 100)
    monkeypatch.setattr(of_pixels, "_from_pillow", None)
    with pytest.raises(ValueError, match=r"5001x5000 pixels, more than 25,000,000; scale it down"):
        decode_image(io.BytesIO(huge_png(5001, 5000)))


def test_large_images_are_decoded_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way: list[int] = []
    most: list[int] = []
    real = of_pixels._from_pillow

    def watched(image: Image.Image) -> torch.Tensor:
        under_way.append(1)
        most.append(len(under_way))
        try:
            threading.Event().wait(0.01)
            return real(image)
        finally:
            under_way.pop()

    monkeypatch.setattr(of_pixels, "_from_pillow", watched)
    monkeypatch.setattr(of_pixels, "LARGE_PIXELS", 30)
    monkeypatch.setattr(decode, "CHUNK_IMAGES", 4)
    monkeypatch.setattr(decode.os, "cpu_count", lambda: 4)
    paths = sorted(make_folder(tmp_path / "x", 16).iterdir())
    adapt_all(ImageFiles(paths), (3, 6, 6))
    assert max(most) == 1
    monkeypatch.setattr(of_pixels, "LARGE_PIXELS", 36)
    adapt_all(ImageFiles(paths), (3, 6, 6))
    assert max(most) > 1


def test_a_pipe_called_png_is_not_waited_for(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "x", 24)
    os.mkfifo(root / "pipe.png")
    end = threading.Timer(5, os.close, [os.open(root / "pipe.png", os.O_RDWR)])
    end.start()  # who waits is let go, and told
    with pytest.raises(DataError, match=r"pipe.png: ValueError: it is no regular file"):
        load_images(f"folder:{root}", (3, 6, 6))
    end.cancel()


def test_what_is_queued_ends_with_an_interrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(ImageFiles):
        read = 0

        def __getitem__(self, index: int) -> torch.Tensor:
            self.read += 1
            threading.Event().wait(0.001)
            return torch.zeros(1, 4, 4, dtype=torch.uint8)

    def interrupt(done: int, every: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(decode.os, "cpu_count", lambda: 1)
    for chunk in (1, 250):  # what has not begun, and what has
        monkeypatch.setattr(decode, "CHUNK_IMAGES", chunk)
        items = Slow([tmp_path] * 500)
        with pytest.raises(KeyboardInterrupt):
            adapt_all(items, (1, 4, 4), progress=interrupt)
        assert items.read < 400


# --- strangers' tables ---------------------------------------------------------------------------


def test_repeated_images_of_a_table_are_kept_once(tmp_path: Path) -> None:
    content = [png(picture(0)), png(picture(1))] * 20
    write_parquet(tmp_path / "a.parquet", [*content, None])  # type: ignore[list-item]
    rows = ParquetImages([tmp_path / "a.parquet"])
    assert len(rows) == 41
    assert all(torch.equal(rows[i], pixels(picture(i % 2))) for i in range(40))
    assert len({id(row[2]) for row in rows._rows}) == 3
    with pytest.raises(ValueError, match="its bytes are missing"):
        rows[40]


@pytest.mark.parametrize(
    ("rows", "value", "text"),
    [(1, bytes(100_000), "1 rows and 100,0"), (200_000, None, "200,000 rows and")],
)
def test_a_table_that_unfolds_to_much_more_than_its_file_is_refused(
    tmp_path: Path, rows: int, value: bytes | None, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "LEAST_UNPACKED_BYTES", 90_000)
    path = tmp_path / "a.parquet"
    table = pa.table({"image": pa.array([value] * rows, pa.binary()), "label": [0] * rows})
    pq.write_table(table, path, compression="zstd")
    assert path.stat().st_size < 100_000
    with pytest.raises(DataError, match=f"bytes unfolds to {text}"):
        len(ParquetImages([path]))
