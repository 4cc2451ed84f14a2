"""Which layers are the convolutional networks built of, and which sizes of them are allowed."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from tombola.errors import ConfigError

MOST = 65_536
"""No size of a network is larger; a file's options are not to be trusted with memory."""


def check_at_least(**values: tuple[float, float]) -> None:
    """Raise ConfigError naming the first option whose (value, least allowed value) is in disorder.

    NaN is in disorder too, and a whole number that no network has.
    """
    for name, (value, least) in values.items():
        if isinstance(value, int) and value > MOST:
            raise ConfigError(f"{name} is {value}; it must be at most {MOST:,}; set a smaller one")
        if not value >= least:
            raise ConfigError(f"{name} is {value}; it must be {least} or more; set a larger {name}")


def check_one_of(size: int, sizes: Sequence[int]) -> None:
    """Raise ConfigError unless the image size in pixels is one of ``sizes``."""
    if size not in sizes:
        raise ConfigError(
            f"size is {size}; this network takes images of {' or '.join(map(str, sizes))} pixels; "
            f"set size={min(sizes, key=lambda known: abs(known - size))}"
        )


def check_multiple(size: int, factor: int) -> None:
    """Raise ConfigError unless the image size in pixels is a positive multiple of ``factor``."""
    if size < factor or size % factor:
        raise ConfigError(
            f"size is {size}; this network takes images whose height and width are a multiple of "
            f"{factor}; set size={max(factor, round(size / factor) * factor)}"
        )


def down(inputs: int, outputs: int, *, norm: bool = True, slope: float = 0.0) -> list[nn.Module]:
    """Convolution 4/2/1 (halves height and width), BatchNorm if ``norm``, (leaky) ReLU.

    (N, inputs, 2H, 2W) -> (N, outputs, H, W). No bias in front of a BatchNorm: the normalisation
    takes it out again, so its gradient is exactly zero.
    """
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 4, 2, 1, bias=not norm)]
    if norm:
        layers.append(nn.BatchNorm2d(outputs))
    layers.append(nn.LeakyReLU(slope, inplace=True) if slope else nn.ReLU(inplace=True))
    return layers


def up(
    inputs: int,
    outputs: int,
    *,
    kernel: int = 4,
    from_vector: bool = False,
    bias: bool = False,
) -> list[nn.Module]:
    """Transposed convolution, BatchNorm, ReLU; no bias unless asked, as in ``down``.

    (N, inputs, H, W) -> (N, outputs, 2H, 2W) by kernel 4/2/1; with ``from_vector``
    (N, inputs, 1, 1) -> (N, outputs, kernel, kernel) by kernel/1/0.
    """
    stride, padding = (1, 0) if from_vector else (2, 1)
    return [
        nn.ConvTranspose2d(inputs, outputs, kernel, stride, padding, bias=bias),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]


def as_pixels(vectors: Tensor) -> Tensor:
    """Vectors (N, D) -> images of one pixel (N, D, 1, 1)."""
    return vectors[:, :, None, None]
