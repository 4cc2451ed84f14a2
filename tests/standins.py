"""Small stand-ins for data sets, in each source's own file layout."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def picture(index: int, size: tuple[int, int] = (6, 6), colour: bool = True) -> Image.Image:
    """A small picture (height, width) that differs with its number."""
    shape = (*size, 3) if colour else size
    values = np.random.default_rng(index).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(values)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(path: Path, images: list[bytes], column: str = "image", **more: object) -> None:
    """One file in the Hugging Face layout: a struct column {bytes, path} and a label."""
    rows = [{"bytes": content, "path": f"{i}.png"} for i, content in enumerate(images)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {column: pa.array(rows, kind), "label": [i % 10 for i in range(len(rows))]} | more
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({k: v for k, v in columns.items() if v is not None}), path)


def make_mnist(root: Path, train: int = 30, test: int = 10) -> list[Image.Image]:
    images = [picture(i, (28, 28), colour=False) for i in range(train + test)]
    content = [png(image) for image in images]
    write_parquet(root / "mnist" / "train-00000-of-00001.parquet", content[:train])
    write_parquet(root / "mnist" / "test-00000-of-00001.parquet", content[train:])
    return images


def make_folder(root: Path, count: int = 24, **options: object) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        picture(i, **options).save(root / f"{i:03d}.png")  # type: ignore[arg-type]
    return root


def make_celeba(root: Path, size: tuple[int, int] = (218, 178)) -> list[Image.Image]:
    place = root / "celeba" / "img_align_celeba"
    place.mkdir(parents=True)
    images = [picture(i, size) for i in range(30)]
    lines = []
    for i, image in enumerate(images):
        image.save(place / f"{i + 1:06d}.jpg", quality=95)
        lines.append(f"{i + 1:06d}.jpg {0 if i < 20 else 1 if i < 23 else 2}")
    lines.append("202599.jpg 2")
    (root / "celeba" / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    return images


def make_cifar10(root: Path, train: int = 30, test: int = 10) -> list[Image.Image]:
    images = [picture(i, (32, 32)) for i in range(train + test)]
    content = [png(image) for image in images]
    for split, part in (("train", content[:train]), ("test", content[train:])):
        path = root / "cifar10" / f"{split}-00000-of-00001.parquet"
        write_parquet(path, part, column="img")
    return images
