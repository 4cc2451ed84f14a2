"""How do encoded images (files, parquet rows, a user's sequence) become uint8 tensors?"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tombola.data.adapt import Shape, fit
from tombola.data.pixels import FULL, decode_image, read_pixels, scale_pixels
from tombola.errors import DataError

CHUNK_IMAGES = 256
CHUNK_BYTES = 1 << 23
"""Images of one size are adapted together, up to this many bytes of decoded pixels."""
LEAST_UNPACKED_BYTES = 1 << 26
"""What a parquet file may unfold to however small it is; else 40 times its own bytes."""
LEAST_RANGE = 0.5
"""Data that use a smaller share of the range from black to white are told of."""


class ImageFiles(Sequence[Tensor]):
    """Image files, decoded one by one when asked for."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        """Number of files."""
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        """The image at this place: uint8 or uint16 (C, H, W)."""
        return decode_image(self.paths[index])

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
        """The image in this row: uint8 or uint16 (C, H, W)."""
        self._read()
        content = self._rows[index][2]
        if content is None:
            raise ValueError("its bytes are missing")
        return decode_image(io.BytesIO(content))

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
        kind = schema.field(column).type
        is_struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        if not is_struct and not pa.types.is_binary(kind):
            raise DataError(
                f"{path}: column {column} is of type {kind}; wanted is a struct of bytes and path"
            )
        leaf = f"{column}.bytes" if is_struct else column
        _check_size(path, file.metadata, leaf)
        # Repeated images are kept once: else a small file could ask for any amount of memory.
        file = pq.ParquetFile(path, read_dictionary=[leaf])
        table = file.read(columns=[leaf, "label"] if has_label else [leaf])
        chunks = table.column(column).chunks
        contents: list[bytes | None] = []
        for chunk in ((chunk.field("bytes") if is_struct else chunk) for chunk in chunks):
            values = chunk.dictionary.to_pylist()
            contents += [None if i is None else values[i] for i in chunk.indices.to_pylist()]
        labels: list[int] = table.column("label").to_pylist() if has_label else []
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{path} is truncated or not a parquet file "
            f"({str(error).splitlines()[0][:80]}); download it again"
        ) from error
    if not all(isinstance(label, int) and 0 <= label < 1 << 63 for label in labels):
        raise DataError(
            f"{path}: column label is not made of integers from 0 "
            f"({schema.field('label').type}); wanted is one class number a row"
        )
    return contents, labels


def _check_size(path: Path, metadata: Any, leaf: str) -> None:
    """DataError if a parquet file's footer asks for much more memory than the file has bytes."""
    size = path.stat().st_size
    columns = [
        group.column(index)
        for group in map(metadata.row_group, range(metadata.num_row_groups))
        for index in range(group.num_columns)
    ]
    unpacked = sum(c.total_uncompressed_size for c in columns if c.path_in_schema == leaf)
    most, rows = max(LEAST_UNPACKED_BYTES, 40 * size), 100_000 + size // 16
    if unpacked > most or metadata.num_rows > rows:
        raise DataError(
            f"{path} of {size:,} bytes unfolds to {metadata.num_rows:,} rows and {unpacked:,} "
            f"bytes; at most {rows:,} and {most:,} are read: get it from its source"
        )


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
    lowest: float = 1.0
    highest: float = 0.0
    """The darkest and the brightest value of all, as shares of white."""
    full: int = 0
    """What white is in the files: 255, 65535, or as was said; 0 where all are floats."""

    def see(self, raw: Tensor, white: int) -> None:
        """Take note of the range of some pixels, before they were scaled."""
        white = (white or FULL[raw.dtype]) if raw.dtype in FULL else 0
        low, high = (raw.to(torch.int32) if raw.dtype == torch.uint16 else raw).aminmax()
        self.lowest = min(self.lowest, float(low) / max(1, white))
        self.highest = max(self.highest, float(high) / max(1, white))
        self.full = max(self.full, white)

    def join(self, part: Adapted) -> None:
        """Take in what came of other rows, or of another split."""
        self.sizes |= part.sizes
        self.broken |= part.broken
        self.labels |= part.labels
        self.lowest = min(self.lowest, part.lowest)
        self.highest = max(self.highest, part.highest)
        self.full = max(self.full, part.full)

    @property
    def range_note(self) -> str:
        """What is to be known where less than half of the range from black to white is used."""
        if not 0 <= self.highest - self.lowest < LEAST_RANGE:
            return ""
        full = self.full or 255
        low, high = round(self.lowest * full), round(self.highest * full)
        text = f"little contrast: all pixel values are from {low} to {high}, white being {full}"
        bits = (1 << high.bit_length()) - 1
        if 0 < bits < self.full:
            text += f" (where white is {bits}, say so: --set data.white={bits})"
        return text


def adapt_all(
    items: Any,
    shape: Shape,
    *,
    skip_broken: bool = False,
    white: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Adapted:
    """Adapt all images of a tensor (N, C, H, W) or of a sequence, decoding on several threads.

    ``white``: see ``pixels.scale_pixels``. DataError names the first image that cannot be decoded,
    unless broken ones are skipped.
    """
    out = Adapted(torch.zeros((len(items), *shape), dtype=torch.uint8, device="cpu"))
    if isinstance(items, Tensor):
        for first in range(0, len(items), CHUNK_IMAGES):
            rows = items[first : first + CHUNK_IMAGES]
            try:
                out.images[first : first + CHUNK_IMAGES] = fit(scale_pixels(rows, white), shape)
            except ValueError as error:
                raise broken_error(first, str(error), items) from error
            out.see(rows, white)
        out.sizes.add((int(items.shape[1]), int(items.shape[2]), int(items.shape[3])))
        return out

    ended = threading.Event()

    def one(start: int) -> Adapted:
        part = Adapted(out.images)
        indices = range(start, min(start + CHUNK_IMAGES, len(items)))
        _adapt_range(items, indices, part, shape, white, ended)
        return part

    starts = range(0, len(items), CHUNK_IMAGES)
    is_ours = isinstance(items, ImageFiles | ParquetImages)  # a user's may not bear threads
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1) if is_ours else 1) as pool:
        try:
            for start, part in zip(starts, pool.map(one, starts), strict=True):
                if part.broken and not skip_broken:
                    index = min(part.broken)
                    raise broken_error(index, part.broken[index], items)
                out.join(part)
                if progress is not None:
                    progress(min(start + CHUNK_IMAGES, len(items)), len(items))
        finally:  # of an interrupt too: what is queued could take hours
            ended.set()
    return out


def broken_error(index: int, what: str, items: Any) -> DataError:
    """The error that names a broken image."""
    name = items.name_of(index) if hasattr(items, "name_of") else f"image {index}"
    return DataError(
        f"cannot decode {name}: {what}; replace or remove it, or leave such images "
        "out with --skip-broken"
    )


def _adapt_range(
    items: Any,
    indices: range,
    out: Adapted,
    shape: Shape,
    white: int,
    ended: threading.Event,
) -> None:
    """Decode these items and write them, adapted, into their rows; groups of one size at a time.

    Stops early once ``ended`` is set.
    """
    group: list[Tensor] = []
    rows: list[int] = []

    def flush() -> None:
        if group:
            out.images[rows] = fit(torch.stack(group), shape)
            group.clear()
            rows.clear()

    for index in indices:
        if ended.is_set():
            break
        try:
            item = items[index]
            if isinstance(item, tuple | list):
                out.labels[index] = int(item[1])
                item = item[0]
            raw = read_pixels(item)
            image = scale_pixels(raw, white)
        except DataError:
            raise
        except Exception as error:  # decoders of damaged files raise nearly anything
            reason = str(error).splitlines()[0][:100] if str(error) else ""
            out.broken[index] = f"{type(error).__name__}: {reason}".removesuffix(": ")
            continue
        out.see(raw, white)
        out.sizes.add((image.shape[0], image.shape[1], image.shape[2]))
        if group and (
            group[0].shape != image.shape or (len(group) + 1) * image.numel() > CHUNK_BYTES
        ):
            flush()
        group.append(image)
        rows.append(index)
    flush()
