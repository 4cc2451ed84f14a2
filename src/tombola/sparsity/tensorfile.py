"""How do named torch tensors of any dtype get into a container file and back, bit for bit?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tombola.errors import TicketError
from tombola.sparsity.container import Raw, Source, open_file, write_file
from tombola.sparsity.layout import CHECKPOINT_FORMAT, expect

_TEXT_TO_DTYPE = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16,
    "U16": torch.uint16, "F16": torch.float16, "BF16": torch.bfloat16, "I32": torch.int32,
    "U32": torch.uint32, "F32": torch.float32, "I64": torch.int64, "U64": torch.uint64,
    "F64": torch.float64,
}  # fmt: skip
_DTYPE_TO_TEXT = {dtype: text for text, dtype in _TEXT_TO_DTYPE.items()}


def save_tensors(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    manifest: Mapping[str, Any],
    *,
    format: str = CHECKPOINT_FORMAT,
    checksum: bool = True,
) -> None:
    """Write any named tensors (all dtypes of ITEM_BYTES, any device), atomically.

    For the other formats the names and the manifest must be theirs. ``checksum=False`` saves the
    hashing and is allowed for checkpoints only.
    """
    raws = {name: to_raw(tensor) for name, tensor in tensors.items()}
    write_file(path, raws, manifest, format=format, checksum=checksum)


def load_tensors(
    path: str | Path, *, format: str = CHECKPOINT_FORMAT, checksum: bool = True
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read (tensors as stored, manifest), on the CPU; TicketError if unsound or another format.

    A checksum in the file is checked unless ``checksum`` is False.
    """
    with open_file(path) as source:
        expect(source.header, format)
        if checksum:
            source.check()
        return {
            name: read_tensor(source, name) for name in source.header.entries
        }, source.header.manifest


def to_raw(tensor: Tensor) -> Raw:
    """Any tensor -> its bytes in C order, without a copy where it is contiguous on the CPU."""
    if tensor.dtype not in _DTYPE_TO_TEXT:
        raise TicketError(
            f"a tensor of {tensor.dtype} cannot be stored; use {', '.join(_DTYPE_TO_TEXT.values())}"
        )
    flat = tensor.detach().to("cpu").reshape(-1)  # C order, whatever the strides
    data = flat.contiguous().view(torch.uint8).numpy().data
    return Raw(_DTYPE_TO_TEXT[tensor.dtype], tuple(tensor.shape), data)


def read_tensor(source: Source, name: str) -> Tensor:
    """One tensor of a checked file, as stored."""
    entry = source.header.entries[name]
    buffer = torch.empty(entry.size, dtype=torch.uint8, device="cpu")
    source.read_into(name, buffer.numpy().data)
    # A byte other than 0 and 1 in a torch.bool is undefined behaviour: compare, do not view.
    plain = buffer != 0 if entry.dtype == "BOOL" else buffer.view(_TEXT_TO_DTYPE[entry.dtype])
    return plain.reshape(entry.shape)
