"""What are the pixels of one image, and which of their values is white?

Files say how deep they are (8 or 16 bits), not how much of that they use: 12 bits of 16, or 0 and 1
for a mask. The largest value of the type is white unless somebody says what is.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
"""The readers of Pillow that a file may reach. One of the others hands files to Ghostscript."""
MOST_PIXELS = 25_000_000
"""Files with larger images are refused: to decode and scale one takes some 20 bytes a pixel."""
LARGE_PIXELS = 4_000_000
"""Files with larger images are decoded one at a time."""
FULL = {torch.uint8: 255, torch.uint16: 65535}
"""The largest value of each type of pixels."""
_one_large = threading.Lock()
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # MOST_PIXELS is lower


def decode_image(source: Path | io.BytesIO) -> Tensor:
    """The image in a file, or in a file's bytes: uint8, or uint16 where it is so deep, (C, H, W).

    ValueError if it is larger than MOST_PIXELS, of an unknown range, or no regular file; Pillow's
    UnidentifiedImageError if it is of none of FORMATS; damaged files raise nearly anything.
    """
    if isinstance(source, Path) and not stat.S_ISREG(os.stat(source).st_mode):
        raise ValueError("it is no regular file")  # to open a pipe would wait for ever
    with Image.open(source, formats=FORMATS) as image:
        width, height = image.size
        if width * height > MOST_PIXELS:
            raise ValueError(
                f"it has {width}x{height} pixels, more than {MOST_PIXELS:,}; scale it down"
            )
        large = width * height > LARGE_PIXELS
        with _one_large if large else contextlib.nullcontext():
            return _from_pillow(image)


def pixels(item: Any, white: int = 0) -> Tensor:
    """One image -> uint8 (C, H, W) with C 1 or 3: see ``read_pixels`` and ``scale_pixels``."""
    return scale_pixels(read_pixels(item), white)


def read_pixels(item: Any) -> Tensor:
    """One image -> (C, H, W) of its own type, with C 1 or 3.

    Takes a tensor (H, W) or (C, H, W), an array (H, W) or (H, W, C), or a Pillow image. ValueError
    for anything else.
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
    return tensor


def scale_pixels(raw: Tensor, white: int = 0) -> Tensor:
    """Pixels of any type -> uint8, rounded once; of integers ``white`` becomes 255.

    ``white``: 0 = the largest value of uint8 or uint16. Floats must be in [0, 1]. ValueError for
    values above white, and for other types.
    """
    if raw.dtype not in FULL:
        return unit_to_uint8(raw)
    white = white or FULL[raw.dtype]
    if raw.dtype == torch.uint8 and white == 255:
        return raw
    values = raw.to(torch.float64)
    if float(values.max()) > white:
        raise ValueError(f"its brightest value is {values.max():g}, above data.white = {white}")
    return values.div_(white / 255).round_().to(torch.uint8)


def unit_to_uint8(tensor: Tensor) -> Tensor:
    """Floats in [0, 1] -> uint8 in 0..255, rounded; ValueError for other types or ranges."""
    if not tensor.is_floating_point():
        raise ValueError(f"its type is {tensor.dtype}, not uint8 or floats in [0, 1]")
    low, high = float(tensor.min()), float(tensor.max())
    if not (low >= 0.0 and high <= 1.0):
        raise ValueError(f"its floats are in [{low:g}, {high:g}], not in [0, 1]")
    return tensor.to(torch.float64).mul(255.0).round_().to(torch.uint8)


def _from_pillow(image: Image.Image) -> Tensor:
    """Pillow image -> uint8 or uint16 (C, H, W): turned as EXIF says, transparency over white."""
    if image.format != "PNG" or "exif" in image.info:  # the look-up costs as much as decoding
        image = ImageOps.exif_transpose(image)
    if image.mode in ("1", "L"):
        return torch.from_numpy(np.array(image.convert("L")))[None]
    if image.mode == "F":
        raise ValueError("its pixels are floats of unknown range")
    if image.mode.startswith("I"):  # 16-bit grey, which convert("L") would clip at 255
        deep = np.asarray(image)
        if deep.min() < 0 or deep.max() > 65535:
            raise ValueError("its pixels are integers outside 0..65535")
        return torch.from_numpy(deep.astype(np.uint16))[None]
    if image.mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in image.info:
        grey = image.mode in ("LA", "La")
        alpha = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), alpha)
        if grey:
            return torch.from_numpy(np.array(image.convert("L")))[None]
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
