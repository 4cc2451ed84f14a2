"""How do encoded images (files, parquet rows, a user's sequence) become uint8 tensors?"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from tombola.data.adapt import Shape, fit
from tombola.errors import DataError

CHUNK_IMAGES = 256
CHUNK_BYTES = 1 << 23
"""Images of one size are adapted together, up to this many bytes of decoded pixels."""


def pixels(item: Any) -> Tensor:
    """One image -> uint8 (C, H, W) with C 1 or 3.

    Takes a tensor (H, W) or (C, H, W), an array (H, W) or (H, W, C), or a Pillow image. Floats must
    be in [0, 1] and are rounded to 0..255. Raises ValueError for anything else.
    """
    if isinstance(item, Image.Image):
        return _from_pillow(item)
    if isinstance(item, np.ndarray):
        array = torch.from_numpy(np.ascontiguousarray(item))
        tensor = array.permute(2, 0, 1) if array.ndim == 3 else array
    elif isinstance(item, Tensor):
        tensor = item.detach().cpu()
    else:
        raise ValueError(f"a {type(item).__name__} is not an image (tensor, array or Pillow image)")
    if tensor.ndim == 2:
        tensor = tensor[None]
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3) or tensor.numel() == 0:
        raise ValueError(f"its shape is {tuple(tensor.shape)}, not (1, H, W) or (3, H, W)")
    return tensor if tensor.dtype == torch.uint8 else unit_to_uint8(tensor)


def unit_to_uint8(tensor: Tensor) -> Tensor:
    """Floats in [0, 1] -> uint8 in 0..255, rounded; ValueError for other types or ranges."""
    if not tensor.is_floating_point():
        raise ValueError(f"its type is {tensor.dtype}, not uint8 or floats in [0, 1]")
    low, high = float(tensor.min()), float(tensor.max())
    if not (low >= 0.0 and high <= 1.0):
        raise ValueError(f"its floats are in [{low:g}, {high:g}], not in [0, 1]")
    return tensor.to(torch.float64).mul(255.0).round_().to(torch.uint8)


def _from_pillow(image: Image.Image) -> Tensor:
    """Pillow image -> uint8 (C, H, W): turned as EXIF says, transparency laid over white."""
    if image.format != "PNG" or "exif" in image.info:  # the look-up costs as much as decoding
        image = ImageOps.exif_transpose(image)
    if image.mode in ("1", "L"):
        return torch.from_numpy(np.array(image.convert("L")))[None]
    if image.mode == "F":
        raise ValueError("its pixels are floats of unknown range")
    if image.mode.startswith("I"):  # 16-bit grey, which convert("L") would clip at 255
        deep = np.asarray(image).astype(np.float64)
        if deep.min() < 0 or deep.max() > 65535:
            raise ValueError("its pixels are integers outside 0..65535")
        return torch.from_numpy(np.rint(deep / 257.0).astype(np.uint8))[None]
    if image.mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in image.info:
        grey = image.mode in ("LA", "La")
        alpha = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), alpha)
        if grey:
            return torch.from_numpy(np.array(image.convert("L")))[None]
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


class ImageFiles(Sequence[Tensor]):
    """Image files, decoded one by one when asked for."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        """Number of files."""
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        """The image at this place: uint8 (C, H, W)."""
        with Image.open(self.paths[index]) as image:
            return pixels(image)

    def name_of(self, index: int) -> str:
        """The path, for messages."""
        return str(self.paths[index])


class ParquetImages(Sequence[Tensor]):
    """The images of parquet files in the Hugging Face layout; read whole by the first len().

    Column ``image`` or ``img``: struct {bytes, path} or binary; ``label``: integer.
    """

    def __init__(self, paths: Sequence[Path], needs_label: bool = True) -> None:
        self.paths = paths
        self._needs_label = needs_label
        self._rows: list[tuple[Path, int, bytes | None]] = []
        self._labels: list[int] | None = None
        self._is_read = False

    def __len__(self) -> int:
        """Number of rows."""
        self._read()
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        """The image in this row: uint8 (C, H, W)."""
        self._read()
        content = self._rows[index][2]
        if content is None:
            raise ValueError("its bytes are missing")
        with Image.open(io.BytesIO(content)) as image:
            return pixels(image)

    def name_of(self, index: int) -> str:
        """File and row, for messages."""
        path, row, _ = self._rows[index]
        return f"{path}, row {row}"

    @property
    def labels(self) -> Tensor | None:
        """int64 (N,), or None where the files have no label column and need none."""
        self._read()
        return (
            None
            if self._labels is None
            else torch.tensor(self._labels, dtype=torch.int64, device="cpu")
        )

    def _read(self) -> None:
        if self._is_read:
            return
        labels: list[int] = []
        for path in self.paths:
            contents, file_labels = _read_parquet(path, self._needs_label)
            self._rows.extend((path, row, content) for row, content in enumerate(contents))
            labels.extend(file_labels)
        self._labels = labels if len(labels) == len(self._rows) else None
        self._is_read = True


def _read_parquet(path: Path, needs_label: bool) -> tuple[list[bytes | None], list[int]]:
    """(encoded images, labels) of one parquet file; DataError names file and columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
        found = ", ".join(f"{entry.name}: {entry.type}" for entry in schema)[:200]
        column = next((name for name in ("image", "img") if name in schema.names), None)
        has_label = "label" in schema.names
        if column is None or (needs_label and not has_label):
            raise DataError(
                f"{path} has the columns ({found}); wanted are an image column "
                "(image or img: struct of bytes and path) and label: integer"
            )
        table = file.read(columns=[column, "label"] if has_label else [column])
        kind = table.schema.field(column).type
        is_struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        if not is_struct and not pa.types.is_binary(kind):
            raise DataError(
                f"{path}: column {column} is of type {kind}; wanted is a struct of bytes and path"
            )
        chunks = table.column(column).chunks
        contents = [
            content
            for chunk in chunks
            for content in (chunk.field("bytes") if is_struct else chunk).to_pylist()
        ]
        labels: list[int] = table.column("label").to_pylist() if has_label else []
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{path} is truncated or not a parquet file "
            f"({str(error).splitlines()[0][:80]}); download it again"
        ) from error
    if not all(isinstance(label, int) and label >= 0 for label in labels):
        raise DataError(
            f"{path}: column label is not made of integers from 0 "
            f"({schema.field('label').type}); wanted is one class number a row"
        )
    return contents, labels


@dataclass
class Adapted:
    """What came of adapting a sequence of images."""

    images: Tensor
    """uint8 (N, C, H, W); rows of broken images are zero."""
    sizes: set[Shape] = field(default_factory=set)
    broken: dict[int, str] = field(default_factory=dict)
    """Index -> what is wrong with it."""
    labels: dict[int, int] = field(default_factory=dict)
    """Labels that came with the items, as (image, label)."""


def adapt_all(
    items: Any,
    shape: Shape,
    *,
    skip_broken: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Adapted:
    """Adapt all images of a tensor (N, C, H, W) or of a sequence, decoding on several threads.

    DataError names the first image that cannot be decoded, unless broken ones are skipped.
    """
    out = Adapted(torch.zeros((len(items), *shape), dtype=torch.uint8, device="cpu"))
    if isinstance(items, Tensor):
        for first in range(0, len(items), CHUNK_IMAGES):
            rows = slice(first, first + CHUNK_IMAGES)
            out.images[rows] = fit(items[rows], shape)
        out.sizes.add((int(items.shape[1]), int(items.shape[2]), int(items.shape[3])))
        return out

    def one(start: int) -> Adapted:
        stop = min(start + CHUNK_IMAGES, len(items))
        part = Adapted(out.images)
        _adapt_range(items, range(start, stop), part, shape)
        return part

    starts = range(0, len(items), CHUNK_IMAGES)
    is_ours = isinstance(items, ImageFiles | ParquetImages)  # a user's may not bear threads
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1) if is_ours else 1) as pool:
        for start, part in zip(starts, pool.map(one, starts), strict=True):
            if part.broken and not skip_broken:
                pool.shutdown(wait=False, cancel_futures=True)
                index = min(part.broken)
                raise broken_error(index, part.broken[index], items)
            out.sizes |= part.sizes
            out.broken |= part.broken
            out.labels |= part.labels
            if progress is not None:
                progress(min(start + CHUNK_IMAGES, len(items)), len(items))
    return out


def broken_error(index: int, what: str, items: Any) -> DataError:
    """The error that names a broken image."""
    name = items.name_of(index) if hasattr(items, "name_of") else f"image {index}"
    return DataError(
        f"cannot decode {name}: {what}; replace or remove it, or leave such images "
        "out with --skip-broken"
    )


def _adapt_range(items: Any, indices: range, out: Adapted, shape: Shape) -> None:
    """Decode these items and write them, adapted, into their rows; groups of one size at a time."""
    group: list[Tensor] = []
    rows: list[int] = []

    def flush() -> None:
        if group:
            out.images[rows] = fit(torch.stack(group), shape)
            group.clear()
            rows.clear()

    for index in indices:
        try:
            item = items[index]
            if isinstance(item, tuple | list):
                out.labels[index] = int(item[1])
                item = item[0]
            image = pixels(item)
        except DataError:
            raise
        except Exception as error:  # decoders of damaged files raise nearly anything
            reason = str(error).splitlines()[0][:100] if str(error) else ""
            out.broken[index] = f"{type(error).__name__}: {reason}".removesuffix(": ")
            continue
        out.sizes.add((image.shape[0], image.shape[1], image.shape[2]))
        if group and (
            group[0].shape != image.shape or (len(group) + 1) * image.numel() > CHUNK_BYTES
        ):
            flush()
        group.append(image)
        rows.append(index)
    flush()
