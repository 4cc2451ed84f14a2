"""Which weights have the highest scores? Exactly k over the pool of all tensors.

A radix select: the scores' bits are counted 16 at a time from the top, so that two passes over
float32 scores find the k-th largest exactly, however many ties there are. Nothing is sorted, and
no threshold is guessed. Zeros of earlier rounds do not compete.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tombola.errors import ConfigError
from tombola.sparsity.masks import Masks

Array = npt.NDArray[Any]
_BINS = 1 << 16
_PIECE = 1 << 19
"""Scores that are counted at a time."""


def top(scores: Mapping[str, Tensor], keep: int, among: Masks | None = None) -> Masks:
    """Keep exactly the ``keep`` largest scores of all tensors together.

    Scores by name, any shapes, any real dtype, of either sign -> masks of the same shapes. Ties go
    to the earlier position: names in the order of the mapping, then C order. With ``among`` only
    what it keeps competes. ConfigError if ``keep`` is not from 1 to the number of competitors, for
    a NaN among them (naming the tensor), or for names or shapes that differ from ``among``.
    """
    if among is not None:
        _check_names(scores, among)
    dtype = _common_dtype(scores)
    pool = {name: value.detach().to("cpu", dtype) for name, value in scores.items()}
    kept = {name: among[name] for name in pool} if among is not None else {}
    total = sum(value.numel() for value in pool.values())
    competitors = sum(_count(mask) for mask in kept.values()) if kept else total
    if not 1 <= keep <= competitors:
        raise ConfigError(
            f"cannot keep {keep} of {competitors} weights that are left; "
            f"keep from 1 to {competitors}"
        )
    for name, value in pool.items():
        _check_nan(name, value, kept.get(name))
    threshold = _kth_largest(_bits(pool, kept), keep, dtype)
    masks: Masks = {}
    for name, value in pool.items():
        chosen = np.greater_equal(value.contiguous().numpy(), threshold)
        if name in kept:
            chosen &= kept[name].numpy()
        masks[name] = torch.from_numpy(np.asarray(chosen))
    surplus = sum(_count(mask) for mask in masks.values()) - keep
    if surplus:
        _drop_ties(masks, pool, threshold, surplus)
    return masks


def _count(mask: Tensor) -> int:
    return int(np.count_nonzero(mask.numpy()))


def _bits(pool: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> list[Tensor]:
    """The competitors as flat tensors of integers that have the floats' bits, in small pieces.

    Pieces keep what is computed from them in the cache, which halves the time.
    """
    pieces: list[Tensor] = []
    for name, value in pool.items():
        flat = value.reshape(-1)
        if name in kept:
            # np.compress takes a tenth of the time of torch's boolean indexing.
            chosen = kept[name].reshape(-1).numpy()
            flat = torch.from_numpy(np.compress(chosen, flat.numpy()))
        width = torch.int32 if flat.dtype == torch.float32 else torch.int64
        pieces.extend(torch.split(flat.view(width), _PIECE))
    return pieces


def _kth_largest(pieces: list[Tensor], k: int, dtype: torch.dtype) -> Array:
    """The k-th largest float, as a 0-d array, among floats given as integers of the same width.

    -0.0 counts as smaller than +0.0 here; callers compare floats, to which they are equal.
    """
    width = pieces[0].dtype
    top_shift = 8 * width.itemsize - 16
    found, negative = 0, False
    for shift in range(top_shift, -1, -16):
        counts = torch.zeros(_BINS, dtype=torch.int64, device="cpu")
        for piece in pieces:
            counts += torch.bincount(_digits(piece, shift), minlength=_BINS)
        order = _by_size(first=shift == top_shift, negative=negative)
        reached = counts[order].cumsum(0)
        place = int(torch.searchsorted(reached, k))
        digit = int(order[place])
        k -= int(reached[place - 1]) if place else 0
        if shift == top_shift:
            negative = digit >= _BINS // 2
            found = digit - _BINS if negative else digit
        else:
            found = found << 16 | digit
        pieces = [
            torch.from_numpy(np.compress(_digits(piece, shift).numpy() == digit, piece.numpy()))
            for piece in pieces
        ]
    threshold: Array = torch.tensor([found], dtype=width, device="cpu").view(dtype).numpy()[0, ...]
    return threshold


def _digits(bits: Tensor, shift: int) -> Tensor:
    return (bits >> shift).bitwise_and_(_BINS - 1)


def _by_size(*, first: bool, negative: bool) -> Tensor:
    """Values of a 16-bit digit from the largest float to the smallest.

    The first digit begins with the sign bit: positive floats fall with their bits, then negative
    ones rise. Further digits fall for positive floats and rise for negative ones.
    """
    rising = torch.arange(_BINS, device="cpu")
    if first:
        return torch.cat([rising[: _BINS // 2].flip(0), rising[_BINS // 2 :]])
    return rising if negative else rising.flip(0)


def _drop_ties(masks: Masks, pool: Mapping[str, Tensor], threshold: Array, surplus: int) -> None:
    """Clear the last ``surplus`` kept positions whose score equals the threshold, in place."""
    for name in reversed(list(masks)):
        kept = masks[name].view(-1).numpy()
        ties = np.flatnonzero(np.equal(pool[name].reshape(-1).numpy(), threshold) & kept)
        last = ties[max(0, len(ties) - surplus) :]
        kept[last] = False
        surplus -= len(last)
        if not surplus:
            return
    raise AssertionError(f"{surplus} ties are missing")


def _common_dtype(scores: Mapping[str, Tensor]) -> torch.dtype:
    """float32 where it holds every score exactly, else float64."""
    for name, value in scores.items():
        if value.is_complex() or value.is_quantized:
            raise ConfigError(f"the scores of {name!r} are {value.dtype}; give real numbers")
    exact = (torch.float32, torch.float16, torch.bfloat16, torch.bool)
    narrow = all(value.dtype in exact for value in scores.values())
    return torch.float32 if narrow else torch.float64


def _check_names(scores: Mapping[str, Tensor], among: Masks) -> None:
    for name in [*scores, *among]:
        have = tuple(scores[name].shape) if name in scores else None
        want = tuple(among[name].shape) if name in among else None
        if have != want:
            raise ConfigError(
                f"the scores of {name!r} have shape {have}, but the mask has shape {want} "
                "(None = not there); a criterion must score exactly the masked parameters"
            )


def _check_nan(name: str, value: Tensor, kept: Tensor | None) -> None:
    # The sum is NaN if any score is (or if infinities of both signs meet): one pass, no copy.
    if not bool(torch.isnan(value.sum())):
        return
    bad = torch.isnan(value) if kept is None else torch.isnan(value) & kept
    if bool(bad.any()):
        raise ConfigError(
            f"{int(bad.sum())} scores of {name!r} are NaN; a criterion must return numbers "
            "(has the training diverged?)"
        )
