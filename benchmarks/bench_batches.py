"""How much faster are batches from memory than a DataLoader that decodes PNG files with PIL?

The baseline has the files' bytes in memory already (no disk) and does to each image what the usual
transforms do: decode, to a float tensor, normalise. Both give the same batches of 128.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from measure import Row, Section, Spread, compare, row, timed
from tombola.data.batches import Batches
from tombola.data.sources import load_images

BATCH = 128


class PngImages(Dataset[Tensor]):
    """PNG files in memory, decoded and normalised one by one."""

    def __init__(self, images: Tensor) -> None:
        self.mode = "L" if images.shape[1] == 1 else "RGB"
        self.files = [self._png(image) for image in images]

    def _png(self, image: Tensor) -> bytes:
        pixels = image.permute(1, 2, 0).numpy()
        written = io.BytesIO()
        Image.fromarray(pixels[..., 0] if self.mode == "L" else pixels).save(written, "png")
        return written.getvalue()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        picture = Image.open(io.BytesIO(self.files[index])).convert(self.mode)
        pixels = torch.from_numpy(np.array(picture)).reshape(picture.height, picture.width, -1)
        return pixels.permute(2, 0, 1).contiguous().to(torch.float32).div(255).sub(0.5).div(0.5)


def endless(images: Tensor) -> Iterator[Tensor]:
    """Batches of a shuffling DataLoader, epoch after epoch."""
    loader = DataLoader(PngImages(images), BATCH, shuffle=True, drop_last=True)
    while True:
        yield from loader


class Stream:
    """Our batches, one after another."""

    def __init__(self, images: Tensor) -> None:
        self.batches = Batches(images, BATCH, 0)
        self.index = 0

    def next(self) -> Tensor:
        """The next batch (128, C, H, W) in [-1, 1]."""
        self.index += 1
        return self.batches.batch(self.index - 1)


def measured(size: str, blocks: int) -> Section:
    """Grey 28x28 and colour 32x32 images of the shipped digits."""
    torch.set_num_threads(1)
    repeats = 8 if size == "full" else 1
    rows: list[Row] = []
    for shape in ((1, 28, 28), (3, 32, 32)):
        images = load_images("digits", shape).splits["train"]
        loader = endless(images)
        found = compare(
            timed(Stream(images).next, repeats), timed(partial(next, loader), repeats), blocks
        )
        channels, height, width = shape
        compared = row(f"{channels} x {height} x {width}", found, None, repeats)
        rows.append(
            Row(
                label=compared.label,
                value=_inverse(compared.value),
                cpu=_inverse(found.ratio("cpu")),
                chance=compared.chance,
                seconds=compared.seconds,
                target=25,
                unit="times",
                at_least=True,
            )
        )
    return Section(
        title="Batches from memory against a PIL DataLoader",
        rows=rows,
        notes=[
            f"Batches of {BATCH}, shuffled; the ratio here is the baseline's time over ours. The "
            "DataLoader runs in the process itself (`num_workers=0`), one thread on both sides."
        ],
    )


def _inverse(ratio: Spread) -> Spread:
    return Spread(1 / ratio.high, 1 / ratio.middle, 1 / ratio.low)


if __name__ == "__main__":
    from run import main

    main(["batches"])
