"""How do named torch tensors of any dtype get into a container file and back, bit for bit?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tombola.errors import TicketError
from tombola.store.container import Raw, Source, open_file, write_file
from tombola.store.format import (
    CHECKPOINT_FORMAT,
    COMPLEX,
    Header,
    check_pairs,
    complex_names,
    expect,
)

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
    sync: bool = True,
) -> None:
    """Write any named tensors (all dtypes of ITEM_BYTES, any device), atomically.

    ``sync``: as of ``atomic.replacing``.
    """
    raws = {name: to_raw(tensor) for name, tensor in tensors.items()}
    told = with_complex(manifest, tensors)
    write_file(path, raws, told, format=CHECKPOINT_FORMAT, sync=sync)


def load_tensors(
    path: str | Path, prefix: str | tuple[str, ...] = ""
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read (tensors as stored, manifest), on the CPU; TicketError if unsound or no checkpoint.

    Only tensors whose names begin with ``prefix``, or one of several, take memory. Every byte is
    read once, and hashed on the way.
    """
    with open_file(path) as source:
        header = source.header
        expect(header, CHECKPOINT_FORMAT)
        entries = {k: entry for k, entry in header.entries.items() if k.startswith(prefix)}
        buffers = {
            name: torch.empty(entry.size, dtype=torch.uint8, device="cpu")
            for name, entry in entries.items()
        }
        source.read_checked({name: buffer.numpy().data for name, buffer in buffers.items()})
        tensors = {name: _as_stored(buffers[name], header, name, name) for name in entries}
        return tensors, without_complex(header.manifest)


def with_complex(manifest: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The manifest, which names the complex ones among the tensors if there are any."""
    names = sorted(name for name, tensor in tensors.items() if tensor.is_complex())
    return without_complex(manifest) | ({COMPLEX: names} if names else {})


def without_complex(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest as it was given: without the names of complex tensors."""
    return {key: value for key, value in manifest.items() if key != COMPLEX}


def can_store(tensor: Tensor) -> bool:
    """Whether a tensor is of a type that files hold."""
    return tensor.is_complex() or tensor.dtype in _DTYPE_TO_TEXT


def to_raw(tensor: Tensor) -> Raw:
    """Any tensor -> its bytes in C order, without a copy where it is contiguous on the CPU.

    A complex one as pairs of real numbers, in one more axis.
    """
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.detach().resolve_conj())
    if tensor.dtype not in _DTYPE_TO_TEXT:
        raise TicketError(
            f"a tensor of {tensor.dtype} cannot be stored; use {', '.join(_DTYPE_TO_TEXT.values())}"
        )
    flat = tensor.detach().to("cpu").reshape(-1)  # C order, whatever the strides
    data = flat.contiguous().view(torch.uint8).numpy().data
    return Raw(_DTYPE_TO_TEXT[tensor.dtype], tuple(tensor.shape), data)


def read_tensor(source: Source, name: str, key: str = "") -> Tensor:
    """One tensor of a checked file, as it was given; ``key``: its name in the manifest."""
    buffer = torch.empty(source.header.entries[name].size, dtype=torch.uint8, device="cpu")
    source.read_into(name, buffer.numpy().data)
    return _as_stored(buffer, source.header, name, key)


def _as_stored(buffer: Tensor, header: Header, name: str, key: str) -> Tensor:
    """The bytes of a tensor, uint8 (bytes,), in its own dtype and shape."""
    entry = header.entries[name]
    # A byte other than 0 and 1 in a torch.bool is undefined behaviour: compare, do not view.
    plain = buffer != 0 if entry.dtype == "BOOL" else buffer.view(_TEXT_TO_DTYPE[entry.dtype])
    if key not in complex_names(header.path, header.manifest):
        return plain.reshape(entry.shape)
    check_pairs(header.path, name, entry.dtype, entry.shape)
    return torch.view_as_complex(plain.reshape(entry.shape))
