"""What did a user's own code hand over as images, and is it sound?"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tombola.data.pixels import pixels, unit_to_uint8
from tombola.errors import DataError


def checked_images(images: Any, what: str) -> Any:
    """Tensors (N, C, H, W) as uint8; sequences as they are; DataError for anything else."""
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(np.ascontiguousarray(images))
    if isinstance(images, Tensor):
        if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape[2:]:
            raise DataError(
                f"{what}: shape {tuple(images.shape)} is not allowed; give uint8 "
                "images (N, C, H, W) with 1 or 3 channels"
            )
        if images.dtype == torch.uint8 or len(images) == 0:
            return images.detach().cpu()
        try:
            return unit_to_uint8(images.detach().cpu())
        except ValueError as error:
            raise DataError(f"{what}: {error}; give uint8 images (N, C, H, W)") from error
    if not hasattr(images, "__len__") or not hasattr(images, "__getitem__"):
        raise DataError(
            f"{what}: a {type(images).__name__} is not a data source; give a uint8 "
            "tensor (N, C, H, W), a sequence or a Dataset with a length"
        )
    return images


def label_tensor(labels: Any, count: int, what: str) -> Tensor | None:
    """Labels as int64 (N,); DataError unless they are one integer from 0 for every image."""
    if labels is None:
        return None
    try:
        given = torch.as_tensor(labels, device="cpu").cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{what}: labels are no integers of 64 bits ({error}); give integers (N,)"
        ) from error
    numbers = given.to(torch.int64)
    whole = not given.is_floating_point() and not given.is_complex()
    if given.shape != (count,) or not whole or (count and int(numbers.min()) < 0):
        raise DataError(
            f"{what}: labels of type {given.dtype} and shape {tuple(given.shape)} "
            f"for {count} images; give one integer from 0 for every image"
        )
    return numbers


def stack(items: Any) -> tuple[Tensor, list[int] | None]:
    """A sequence of images of one size, or of pairs with labels, as one tensor."""
    images, labels = [], []
    for index in range(len(items)):
        try:
            item = items[index]
            if isinstance(item, tuple | list):
                labels.append(int(item[1]))
                item = item[0]
            images.append(pixels(item))
        except Exception as error:
            raise DataError(
                f"image {index}: {type(error).__name__}: {error}; "
                "give images or pairs (image, integer)"
            ) from error
    shapes = sorted({tuple(image.shape) for image in images})
    if len(shapes) != 1:
        raise DataError(
            f"images of {len(shapes)} sizes ({shapes[:3]}); give at least one, all of one size"
        )
    return torch.stack(images), labels if len(labels) == len(images) else None
