"""What must hold in a ticket, model or checkpoint file before a byte of its tensors is believed?

The rules on names, shapes, sizes and the manifest of design section 3.5, apart from how bytes are
read (``container.py``). Only the standard library, so that a header is judged in milliseconds.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tombola.errors import TicketError, escape

TICKET_FORMAT = "tombola.ticket/1"
MODEL_FORMAT = "tombola.model/1"
CHECKPOINT_FORMAT = "tombola.checkpoint/1"
FORMATS = (TICKET_FORMAT, MODEL_FORMAT, CHECKPOINT_FORMAT)

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
"""Dtype text of safetensors -> bytes of one value."""
FLOATS = ("F16", "BF16", "F32", "F64")
COMPLEX = "complex"
"""Key of a manifest: names of tensors that are complex, stored as pairs of reals in a last axis."""

DECODED_LIMIT = 40
"""The decoded size (dense weights and one byte per mask value) may be this often the file's."""
MAX_AXES = 32
MAX_DIM = 2**48
GRANULARITIES = ("weight", "channel")
SPARSITY_TOLERANCE = 1e-3
"""A manifest may round its sparsity, but not tell another story than the mask's bits."""

MANIFEST_KEYS: dict[str, tuple[type, ...]] = {
    "task": (str,), "data": (str,), "data_hash": (str,), "method": (str,), "granularity": (str,),
    "networks": (list, dict), "shapes": (dict,), "sparsity": (int, float),
    "sparsity_all": (int, float), "rewind_step": (int,), "seed": (int,), "round": (int,),
    "parents": (list, dict), "config": (dict,), "scores": (dict,), "cost": (dict,),
    "created_with": (str, dict),
}  # fmt: skip
"""Keys that every ticket's manifest has (design 3.5), and their JSON types; null = not known."""
NEVER_NULL = ("granularity", "networks", "shapes", "sparsity")


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: what it is, and where its bytes lie, counted from the file's start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def size(self) -> int:
        """Bytes stored."""
        return self.end - self.begin


@dataclass(frozen=True)
class Header:
    """A file's checked header: format, manifest (text and parsed), checksum, tensors by name."""

    path: str
    format: str
    manifest: dict[str, Any]
    manifest_text: str
    sha256: str
    """Hex, or empty for a checkpoint that was written without."""
    entries: dict[str, Entry]
    file_bytes: int
    shapes: dict[str, tuple[int, ...]]
    """"network.parameter" -> dense shape; empty for checkpoints."""


def is_text(value: Any) -> bool:
    """Whether JSON values have no lone surrogates, which UTF-8 does not know."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def spelled_out(value: Any) -> Any:
    """JSON values with each lone surrogate written out: backslash, u, four hex digits."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {spelled_out(key): spelled_out(each) for key, each in value.items()}
    return [spelled_out(each) for each in value] if isinstance(value, list | tuple) else value


def unsound(path: str, what: str, todo: str = "get the file again from its source") -> TicketError:
    """The error for a file that must not be used: which one, what is wrong, what to do."""
    return TicketError(f"{escape(path, 400)}: {what}; {todo}")


def expect(header: Header, format: str) -> None:
    """TicketError that says which file to take, if the file has another format."""
    if header.format == format:
        return
    todo = "give a file of that format"
    if format == TICKET_FORMAT:
        todo = "take a file from a run's tickets folder"
    if format == MODEL_FORMAT and header.format == TICKET_FORMAT:
        todo = _trained_of(header)
    raise unsound(header.path, f"a {header.format} file, but {format} is asked for", todo)


def _trained_of(ticket: Header) -> str:
    """Which model file to take for a ticket: the one that lies beside it, or how to get one."""
    folder = Path(ticket.path).parent
    seed, number, told = (ticket.manifest[key] for key in ("seed", "round", "config"))
    if isinstance(seed, int) and isinstance(number, int):
        # OUT/tickets, or OUT/tickets/<arm> where a search has several arms.
        for place, arm in ((folder, ""), (folder / os.pardir, folder.absolute().name)):
            if os.path.basename(os.path.abspath(place)) != "tickets":
                continue
            for kind in ("ticket", "compact"):
                name = f"{kind}-seed{seed}-round{number:02d}.safetensors"
                path = os.path.normpath(place / os.pardir / "models" / arm / name)
                if os.path.isfile(path):
                    return f"take the model trained from it, {escape(path, 400)}"
    todo = "its trained model is not beside it: take one from a run's models folder"
    if isinstance(told, dict) and "search" in told:  # else it is of a training of somebody's own
        todo += (
            ", give the search's command again with --keep all, or train it by tombola train TASK "
            f"--ticket {escape(ticket.path, 400)}"
        )
    return todo


def complex_names(path: str, manifest: Mapping[str, Any]) -> frozenset[str]:
    """The manifest's names of complex tensors; TicketError if they are no list of texts."""
    names = manifest.get(COMPLEX, [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise unsound(path, f"the manifest's {COMPLEX} is {escape(names)}, not a list of names")
    return frozenset(names)


def check_pairs(path: str, name: str, dtype: str, shape: tuple[int, ...]) -> None:
    """TicketError unless a stored tensor can be the pairs of a complex one."""
    if dtype not in FLOATS or dtype == "BF16" or shape[-1:] != (2,):
        raise unsound(
            path,
            f"tensor {escape(name)}: {dtype} {list(shape)} cannot be the pairs of complex numbers",
        )


def numel(shape: tuple[int, ...]) -> int:
    """How many values a tensor of this shape has."""
    return math.prod(shape)


def as_shape(path: str, name: str, value: object) -> tuple[int, ...]:
    """A JSON list -> shape; TicketError for what is no list of small non-negative integers."""
    if not isinstance(value, list) or len(value) > MAX_AXES:
        raise unsound(path, f"tensor {escape(name)}: its shape is no list of at most {MAX_AXES}")
    for dim in value:
        if type(dim) is not int or not 0 <= dim <= MAX_DIM:
            raise unsound(
                path,
                f"tensor {escape(name)}: shape {escape(value)} has a dimension that is not an "
                f"integer from 0 to {MAX_DIM}",
            )
    return tuple(value)


def check_contents(header: Header) -> None:
    """Refuse tensors and manifests that the format does not allow; raises TicketError.

    Looks at the header alone: names, dtypes, shapes, byte counts, the decoded size and the types
    of the manifest's values. Mask bits are counted when the bytes are streamed.
    """
    if header.format == CHECKPOINT_FORMAT:
        return
    for name in header.entries:
        kind, _, key = name.partition(".")
        network, _, parameter = key.partition(".")
        if kind not in ("mask", "weight") or not network or not parameter:
            raise unsound(
                header.path,
                f"tensor {escape(name)}: the name is not mask.<network>.<parameter> "
                "or weight.<network>.<parameter>",
            )
        if key not in header.shapes:
            raise unsound(
                header.path, f"tensor {escape(name)}: the manifest's shapes do not name it"
            )
    pairs = complex_names(header.path, header.manifest)
    for key in header.shapes:
        _check_weight(header, key, key in pairs)
    _check_decoded_size(header)
    _check_manifest(header)


def _check_weight(header: Header, key: str, pairs: bool) -> None:
    """One weight against its dense shape and, where it is masked, its mask."""
    name, path, shape = f"weight.{key}", header.path, header.shapes[key]
    weight, mask = header.entries.get(name), header.entries.get(f"mask.{key}")
    if weight is None:
        raise unsound(path, f"tensor {escape(name)} is missing, but the manifest's shapes name it")
    if pairs:
        check_pairs(path, name, weight.dtype, weight.shape)
        shape = (*shape, 2)
    if mask is None:
        if weight.shape != shape:
            raise unsound(
                path,
                f"tensor {escape(name)}: its shape is {list(weight.shape)}, "
                f"but {list(shape)} in the manifest",
            )
        return
    if header.format == MODEL_FORMAT:
        raise unsound(path, f"tensor {escape(mask.name)}: a model file holds no masks")
    if mask.dtype != "U8" or mask.shape != ((numel(shape) + 7) // 8,):
        raise unsound(
            path,
            f"tensor {escape(mask.name)}: {mask.dtype} {list(mask.shape)} is not the packed mask "
            f"of {list(shape)}, which is U8 [{(numel(shape) + 7) // 8}]",
        )
    if weight.dtype not in FLOATS or len(weight.shape) != 1 or numel(weight.shape) > numel(shape):
        raise unsound(
            path,
            f"tensor {escape(name)}: {weight.dtype} {list(weight.shape)} cannot be the kept values "
            f"of {list(shape)}, which are floats in one axis",
        )


def _check_decoded_size(header: Header) -> None:
    """Refuse a file that unfolds to more than DECODED_LIMIT times its size."""
    allowed, decoded = DECODED_LIMIT * header.file_bytes, 0
    for key, shape in header.shapes.items():
        item = ITEM_BYTES[header.entries[f"weight.{key}"].dtype]
        # Empty tensors count as if each zero were one: strides overflow on [0, 2^40, 2^40].
        spread = math.prod(max(dim, 1) for dim in header.entries[f"weight.{key}"].shape)
        if f"mask.{key}" in header.entries:
            spread = math.prod(max(dim, 1) for dim in shape)
        decoded += spread * (item + (f"mask.{key}" in header.entries))
        if decoded > allowed:
            raise unsound(
                header.path,
                f"tensor {escape('weight.' + key)}: with shape {list(shape)} the file unfolds to "
                f"more than {DECODED_LIMIT} times its {header.file_bytes} bytes",
            )


def _check_manifest(header: Header) -> None:
    """The manifest's values have the contract's types, so that readers need not ask again."""
    manifest, path, is_ticket = header.manifest, header.path, header.format == TICKET_FORMAT
    for key, kinds in MANIFEST_KEYS.items():
        if is_ticket and key not in manifest:
            raise unsound(path, f"the manifest has no {key}")
        value = manifest.get(key)
        if value is None and not (is_ticket and key in NEVER_NULL):
            continue
        if not isinstance(value, kinds) or isinstance(value, bool):
            allowed = " or ".join(kind.__name__ for kind in kinds)
            raise unsound(path, f"the manifest's {key} is {escape(value)!r}, not {allowed}")
    if not is_ticket:
        return
    if manifest["granularity"] not in GRANULARITIES:
        raise unsound(
            path,
            f"the manifest's granularity is {escape(manifest['granularity'])}, "
            f"not {' or '.join(GRANULARITIES)}",
        )
    if not all(isinstance(name, str) for name in manifest["networks"]):
        raise unsound(path, "the manifest's networks are not all names")
    if not 0 <= manifest["sparsity"] <= 1:
        raise unsound(
            path, f"the manifest's sparsity is {escape(manifest['sparsity'])}, not 0 to 1"
        )
    kept, total = counts(header)
    actual = 1 - kept / total if total else 0.0
    by_bits = manifest["granularity"] == "weight"  # a channel's sparsity counts what goes with it
    if by_bits and abs(manifest["sparsity"] - actual) > SPARSITY_TOLERANCE:
        raise unsound(
            path,
            f"the manifest's sparsity is {manifest['sparsity']!r}, "
            f"but the masks keep {kept} of {total} weights, which is {actual:.6g}",
        )


def counts(header: Header) -> tuple[int, int]:
    """(kept, total) over the masked tensors, by their stored lengths and dense shapes."""
    masked = [key for key in header.shapes if f"mask.{key}" in header.entries]
    kept = sum(header.entries[f"weight.{key}"].shape[0] for key in masked)
    return kept, sum(numel(header.shapes[key]) for key in masked)


def check_mask_bits(header: Header, key: str, ones: int, last_byte: int) -> None:
    """A streamed mask against its kept values: ``ones`` bits set, padding of the last byte zero."""
    kept = header.entries[f"weight.{key}"].shape[0]
    padding = -numel(header.shapes[key]) % 8
    name = escape(f"mask.{key}")
    if last_byte & ((1 << padding) - 1):
        raise unsound(header.path, f"tensor {name}: padding bits of the last byte are not zero")
    if ones != kept:
        raise unsound(
            header.path,
            f"tensor {name}: {ones} bits are set, but weight.{escape(key)} holds {kept} values",
        )


def check_format(path: str, name: object) -> str:
    """The ``format`` of a file's metadata, if this version reads it; TicketError otherwise."""
    if name in FORMATS:
        return str(name)
    if isinstance(name, str) and re.fullmatch(r"tombola\.[a-z]+/[0-9]{1,6}", name):
        raise unsound(
            path,
            f"its format is {name}; this version reads {', '.join(FORMATS)}",
            "update Tombola if the file is newer",
        )
    what = "has no format in its metadata" if name is None else f"its format is {escape(name)}"
    raise unsound(
        path,
        f"a safetensors file, but not one of Tombola's: {what}",
        "give a ticket or model file that Tombola wrote",
    )


def parse_shapes(path: str, manifest: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The manifest's ``shapes`` as tuples; TicketError naming the tensor for a bad one."""
    shapes = manifest.get("shapes")
    if not isinstance(shapes, dict):
        raise unsound(path, "the manifest has no shapes")
    return {key: as_shape(path, f"weight.{key}", value) for key, value in shapes.items()}
