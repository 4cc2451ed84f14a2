"""A watch of early-bird masks as JSON and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tombola.sparsity.compact import Kept
from tombola.sparsity.earlybird import Watch


def pack_watch(watch: Watch) -> dict[str, Any]:
    """A watch as JSON: its draws as hexadecimal bits, and the distances that decided."""
    tensors, state = watch.state()
    draws = {name: to_hex({name: rows.flatten()})[name] for name, rows in tensors.items()}
    sizes = {name: rows.shape[1] for name, rows in tensors.items()}
    return {**state, "draws": draws, "sizes": sizes, "largest": watch.largest}


def unpack_watch(state: Mapping[str, Any]) -> Watch:
    """The watch that :func:`pack_watch` made JSON of."""
    count = len(state["steps"])
    sizes = {name: count * size for name, size in state["sizes"].items()}
    flat = from_hex(state["draws"], sizes)
    return Watch.load({name: rows.reshape(count, -1) for name, rows in flat.items()}, state)


def to_hex(masks: Mapping[str, Tensor]) -> dict[str, str]:
    """Masks as hexadecimal bits."""
    return {name: np.packbits(mask.numpy()).tobytes().hex() for name, mask in masks.items()}


def from_hex(texts: Mapping[str, str], sizes: Mapping[str, int]) -> Kept:
    """Masks of ``sizes`` values from what :func:`to_hex` made of them."""
    found = {}
    for name, text in texts.items():
        raw = np.frombuffer(bytes.fromhex(text), dtype=np.uint8)
        bits = np.unpackbits(raw, count=sizes[name]).astype(bool)
        found[name] = torch.from_numpy(bits)
    return found
