"""What does the network look like that predicts the noise in an image: a small U-Net.

The layers are those of Ho, Jain and Abbeel 2020, "Denoising diffusion probabilistic models",
appendix B: residual blocks with GroupNorm, told the time by linear layers, skips from the way down
to the way up. The time scales and shifts what a block has normalised (Dhariwal and Nichol 2021,
"Diffusion models beat GANs on image synthesis", section 3): what is only added to, as in Ho et
al., learns far slower how much louder the noise is at one time than at another. Smaller: attention
only in the middle, and an option to work on patches of pixels, so that a laptop trains it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pixel_shuffle, pixel_unshuffle, silu

from tombola.errors import ConfigError
from tombola.models.blocks import as_pixels, check_at_least, check_multiple

Shape = tuple[int, int, int]
MOST_BLOCKS = 256
"""Residual blocks down; a file's options are not to be trusted with time."""
GROUP = 4
"""Channels that a GroupNorm normalises together: those of Ho et al.'s 32 groups of 128."""
SLOWEST = 10_000.0
"""Longest wave of the time embedding (Vaswani et al. 2017, "Attention is all you need")."""


class UNet(nn.Module):
    """Noisy images (N, C, S, S) and their times (N,) or (1,) -> the noise in them, same shape.

    Levels of ``width`` times each of ``levels`` channels, each but the last halving the size; on
    each ``blocks`` residual blocks down and as many up, joined by skips. ``patch``: patches of so
    many pixels a side are the outermost level's pixels.
    """

    def __init__(
        self, shape: Shape, width: int, levels: Sequence[int], blocks: int = 1, patch: int = 1
    ) -> None:
        super().__init__()
        check_at_least(width=(width, 1), blocks=(blocks, 1), patch=(patch, 1))
        check_at_least(width_of_a_level=(width * max(levels, default=1), 1))
        if blocks * len(levels) > MOST_BLOCKS:
            raise ConfigError(
                f"blocks is {blocks} on {len(levels)} levels; at most {MOST_BLOCKS} in all are "
                "built; set fewer"
            )
        check_multiple(shape[1], patch * 2 ** (len(levels) - 1))
        self.patch = patch
        widths = [width * times for times in levels]
        pixels, told = shape[0] * patch**2, 4 * width
        self.time = nn.Sequential(nn.Linear(4 * GROUP, told), nn.SiLU(), nn.Linear(told, told))
        self.first = nn.Conv2d(pixels, widths[0], 3, 1, 1)
        self.down = nn.ModuleList()
        for inputs, outputs in pairwise([widths[0], *widths]):
            sizes = [inputs, *[outputs] * blocks]
            self.down.append(nn.ModuleList(_Block(a, b, told) for a, b in pairwise(sizes)))
        self.smaller = nn.ModuleList(nn.Conv2d(w, w, 3, 2, 1) for w in widths[:-1])
        last = widths[-1]
        self.middle = nn.ModuleList([_Block(last, last, told), _Block(last, last, told)])
        self.attention = _Attention(last)
        self.up = nn.ModuleList()
        for outputs, inputs in reversed(list(pairwise([*widths, last]))):
            sizes = [inputs, *[outputs] * (blocks - 1)]
            self.up.append(nn.ModuleList(_Block(size + outputs, outputs, told) for size in sizes))
        self.larger = nn.ModuleList(nn.Conv2d(w, w, 3, 1, 1) for w in reversed(widths[1:]))
        end = nn.Conv2d(widths[0], pixels, 3, 1, 1)
        self.last = nn.Sequential(_norm(widths[0]), nn.SiLU(), end)

    def forward(self, images: Tensor, times: Tensor) -> Tensor:
        """Images (N, C, S, S), times from 0 to 1,000 -> the predicted noise, as the images."""
        told = silu(self.time(_waves(times, 4 * GROUP).to(images.dtype)))
        values = self.first(pixel_unshuffle(images, self.patch))
        skips: list[Tensor] = []
        for level, blocks in enumerate(self.down):
            if level:
                values = self.smaller[level - 1](values)
            for block in cast(nn.ModuleList, blocks):
                values = block(values, told)
                skips.append(values)
        values = self.middle[0](values, told)
        values = self.middle[1](self.attention(values), told)
        for level, blocks in enumerate(self.up):
            if level:
                values = self.larger[level - 1](interpolate(values, scale_factor=2.0))
            for block in cast(nn.ModuleList, blocks):
                values = block(torch.cat([values, skips.pop()], 1), told)
        return pixel_shuffle(self.last(values), self.patch)


class _Block(nn.Module):
    """GroupNorm, SiLU, 3x3, GroupNorm, the time, SiLU, 3x3, and a skip of 1x1 where it has to."""

    def __init__(self, inputs: int, outputs: int, told: int) -> None:
        super().__init__()
        self.before, self.enter = _norm(inputs), nn.Conv2d(inputs, outputs, 3, 1, 1)
        self.between, self.leave = _norm(outputs), nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.scale, self.shift = nn.Linear(told, outputs), nn.Linear(told, outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, values: Tensor, told: Tensor) -> Tensor:
        """Values (N, inputs, H, W) and the time (N or 1, told) -> (N, outputs, H, W)."""
        inner = self.between(self.enter(silu(self.before(values))))
        inner = inner * (1 + as_pixels(self.scale(told))) + as_pixels(self.shift(told))
        return cast(Tensor, self.skip(values) + self.leave(silu(inner)))


class _Attention(nn.Module):
    """Each place looks at all others, one head (Ho et al. 2020, appendix B); added to what came."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.query, self.key, self.value = (nn.Conv2d(channels, channels, 1) for _ in range(3))
        self.leave = nn.Conv2d(channels, channels, 1)

    def forward(self, values: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        seen = self.norm(values)
        query, key, value = (part(seen).flatten(2) for part in (self.query, self.key, self.value))
        weights = (query.transpose(1, 2) @ key / math.sqrt(query.shape[1])).softmax(2)
        mixed = (value @ weights.transpose(1, 2)).unflatten(2, values.shape[2:])
        return cast(Tensor, values + self.leave(mixed))


def _norm(channels: int) -> nn.GroupNorm:
    """GroupNorm in groups of four channels, of fewer where four do not divide them."""
    return nn.GroupNorm(channels // math.gcd(channels, GROUP), channels)


def _waves(times: Tensor, size: int) -> Tensor:
    """Times (N,) -> sines and cosines of ``size`` / 2 frequencies each, (N, size).

    Vaswani et al. 2017, section 3.5.
    """
    half = size // 2
    steps = torch.arange(half, device=times.device, dtype=torch.float32) / half
    angles = times.to(torch.float32)[:, None] * torch.exp(-math.log(SLOWEST) * steps)
    return torch.cat([angles.sin(), angles.cos()], 1)
