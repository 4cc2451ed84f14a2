"""How does an image of any size and colour become one of the asked shape?"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

Shape = tuple[int, int, int]


def fit(images: Tensor, shape: Shape) -> Tensor:
    """Adapt uint8 images to a shape: centre crop, colour, then padding or scaling.

    images (N, c, h, w) uint8 with c 1 or 3 -> (N, C, H, W) uint8. What does not have the asked
    aspect ratio is cropped around its centre; colour is averaged to grey, grey is repeated; 28x28
    is padded with zeros to 32x32, other sizes are scaled (bilinear, antialiased). Rounded once.
    """
    channels, height, width = shape
    images = centre_crop(images, height, width)
    size = (images.shape[2], images.shape[3])
    if _is_padded(size, (height, width)):
        images = functional.pad(images, (2, 2, 2, 2))
        size = (height, width)
    if images.shape[1] > channels or size != (height, width):
        if images.shape[1] > channels:
            whole = images.sum(dim=1, keepdim=True, dtype=torch.int32)
            planes = [whole.to(torch.float64).div_(images.shape[1])]
        else:
            planes = list(torch.split(images, 1, dim=1))  # one at a time: eight bytes a pixel
        images = torch.cat([_rounded(plane, (height, width)) for plane in planes], dim=1)
    return images.expand(-1, channels, -1, -1).contiguous()


def _rounded(plane: Tensor, size: tuple[int, int]) -> Tensor:
    """One channel (N, 1, h, w) scaled to a size and rounded to uint8.

    In float64: the rounding then gives the same bytes, and so the same data hash, whether or not a
    processor fuses multiply and add.
    """
    exact = plane.to(torch.float64)
    if exact.shape[2:] != size:
        exact = functional.interpolate(
            exact, size=size, mode="bilinear", antialias=True, align_corners=False
        )
    return exact.round_().clamp_(0, 255).to(torch.uint8)


def centre_crop(images: Tensor, height: int, width: int) -> Tensor:
    """The largest centred part of (..., h, w) with the aspect ratio height : width; a view."""
    h, w = images.shape[-2], images.shape[-1]
    high, wide = _cropped_size((h, w), (height, width))
    top, left = (h - high) // 2, (w - wide) // 2
    return images[..., top : top + high, left : left + wide]


def describe(sizes: set[Shape], shape: Shape) -> str:
    """One clause that says how images of these (c, h, w) sizes became the asked shape."""
    channels, height, width = shape
    target = f"{height}x{width}"
    places = sorted({(h, w) for _, h, w in sizes})
    cuts = [_cropped_size(place, (height, width)) for place in places]
    cropped = " cropped around the centre," if cuts != places else ""
    colours = {"grey" if c == 1 else "colour" for c, _, _ in sizes}
    colour = " and ".join(sorted(colours))
    asked = "grey" if channels == 1 else "colour"
    change = (
        ""
        if colours == {asked}
        else f", {'averaged' if channels == 1 else 'grey'} "
        + ("to grey" if channels == 1 else "repeated to colour")
    )
    if len(places) > 1:
        (h0, w0), (h1, w1) = places[0], places[-1]
        span = f"{len(places)} sizes from {h0}x{w0} to {h1}x{w1}"
        return f"{span}, {colour},{cropped} scaled to {target}{change}"
    size = places[0]
    start = f"{size[0]}x{size[1]} {colour}"
    if size == (height, width):
        return f"{start} as it is{change}"
    if _is_padded(cuts[0], (height, width)):
        return f"{start}{cropped} padded to {target}{change}"
    return f"{start}{cropped} scaled to {target}{change}"


def _cropped_size(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    (h, w), (height, width) = size, target
    return min(h, max(1, w * height // width)), min(w, max(1, h * width // height))


def _is_padded(size: tuple[int, int], target: tuple[int, int]) -> bool:
    return size == (28, 28) and target == (32, 32)
