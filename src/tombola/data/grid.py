"""Images side by side in one picture."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image
from torch import Tensor

GRID_COLUMNS, GRID_ROWS = 8, 4


def save_grid(place: Path | BinaryIO, images: Tensor, columns: int = GRID_COLUMNS) -> None:
    """uint8 images (N, C, H, W) as one PNG, without gaps."""
    n, channels, height, width = images.shape
    rows = -(-n // columns)
    sheet = np.zeros((rows * height, columns * width, channels), np.uint8)
    for index, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        row, column = divmod(index, columns)
        sheet[row * height : (row + 1) * height, column * width : (column + 1) * width] = image
    picture = Image.fromarray(sheet if channels == 3 else sheet[..., 0])
    picture.save(place, format="PNG", optimize=True)
