"""Which images does the draw with this number get? A pure function of (seed, number)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tombola.config.runtime import rng
from tombola.errors import ConfigError, DataError


def normalise(images: Tensor) -> Tensor:
    """uint8 in 0..255 -> float32 in [-1, 1]; 0 becomes -1 and 255 becomes 1 exactly."""
    return images.to(torch.float32).div_(127.5).sub_(1.0)


def to_uint8(images: Tensor) -> Tensor:
    """Float in [-1, 1] -> uint8 in 0..255, rounded; values outside are clamped.

    The exact inverse of ``normalise`` on its values.
    """
    scaled = images.to(torch.float32).add(1.0).mul_(127.5)
    return scaled.round_().clamp_(0, 255).to(torch.uint8)


class Batches:
    """An endless stream of full batches: the permutations of all epochs laid end to end.

    images (N, C, H, W) uint8 are held on the device and normalised there, batch by batch, without
    Python per image. The permutation of epoch e is drawn from ``rng(seed, "order", e)``, so batch i
    is the same whether or not batches 0..i-1 were asked for.
    """

    def __init__(
        self, images: Tensor, batch_size: int, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise DataError(
                f"batches need uint8 images (N, C, H, W), not {images.dtype} "
                f"of shape {tuple(images.shape)}; convert them with to_uint8"
            )
        if len(images) == 0:
            raise DataError("batches need at least one image, not 0; check the data source")
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; give 1 or more")
        self.batch_size = batch_size
        self.seed = seed
        self.device = torch.device(device)
        self._images = images.to(self.device)
        self._orders: dict[int, Tensor] = {}

    def __len__(self) -> int:
        """Number of images."""
        return len(self._images)

    def steps_per_epoch(self, draws_per_step: int = 1) -> int:
        """Steps that show every image at least once when a step draws this many batches."""
        return math.ceil(len(self) / (self.batch_size * draws_per_step))

    def batch(self, index: int) -> Tensor:
        """Draw ``index`` (from 0): float32 (batch_size, C, H, W) in [-1, 1] on the device."""
        return normalise(self._images.index_select(0, self.indices(index)))

    def indices(self, index: int) -> Tensor:
        """The image numbers of draw ``index``: int64 (batch_size,) on the device."""
        n = len(self)
        epoch, offset = divmod(index * self.batch_size, n)
        parts: list[Tensor] = []
        missing = self.batch_size
        while missing:
            part = self._order(epoch)[offset : offset + missing]
            parts.append(part)
            missing -= len(part)
            epoch, offset = epoch + 1, 0
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _order(self, epoch: int) -> Tensor:
        """The permutation of an epoch; the two used last are kept."""
        order = self._orders.pop(epoch, None)
        if order is None:
            generator = rng(self.seed, "order", epoch)
            order = torch.randperm(len(self), generator=generator, device="cpu").to(self.device)
        self._orders[epoch] = order
        while len(self._orders) > 2:
            del self._orders[next(iter(self._orders))]
        return order


class LabelledBatches(Batches):
    """The same stream of images, each batch with the labels of its images."""

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | None,
        batch_size: int,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(images, batch_size, seed, device)
        self._labels = None if labels is None else labels.to(self.device)

    def batch(self, index: int) -> Any:
        """(float32 images in [-1, 1], int64 labels (batch_size,) or None) of a draw."""
        labels = None if self._labels is None else self._labels[self.indices(index)]
        return super().batch(index), labels


def blank(batch: Any) -> Any:
    """A batch with empty images, its labels as they are."""
    if isinstance(batch, tuple):
        return torch.zeros_like(batch[0]), *batch[1:]
    return torch.zeros_like(batch)
