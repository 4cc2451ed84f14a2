r"""How are a file's bytes read without trust, and written without a half-written file left behind?

A file is safetensors (u64 little-endian header length, JSON header, tensor bytes) with three
metadata strings (design section 3.5): ``format``, ``manifest`` (canonical JSON: sorted keys,
``,`` and ``:`` without spaces, ASCII) and ``sha256``. The checksum is lower-case hex of SHA-256
over, for each tensor in sorted order by name (code points), the concatenation

    name in UTF-8, b"\0", dtype as safetensors writes it ("F32"), b"\0",
    shape as compact JSON ("[3,4]", "[]"), b"\0", the tensor's bytes (C order, little-endian)

and then the manifest's UTF-8. Only a checkpoint of an older version does without ``sha256``.

Reading goes: regular file, header length, JSON (no duplicate keys), offsets without hole or
overlap, shapes, decoded size (``layout.py``), then one streamed pass for checksum and mask bits.
Memory for tensors is taken only after that. Only the standard library is imported here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tombola.config.atomic import replacing
from tombola.errors import TicketError, escape
from tombola.store.format import (
    CHECKPOINT_FORMAT,
    ITEM_BYTES,
    TICKET_FORMAT,
    Entry,
    Header,
    as_shape,
    check_contents,
    check_format,
    check_mask_bits,
    is_text,
    numel,
    parse_shapes,
    spelled_out,
    unsound,
)

MAX_HEADER_BYTES = 16 * 2**20
MAX_HEADER_VALUES = 1_000_000
"""Brackets and commas in a header; bounds the memory that its JSON takes once parsed."""
CHUNK_BYTES = 2**20
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass(frozen=True)
class Raw:
    """A tensor to be written: dtype text of safetensors, shape, and bytes in C order."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes | memoryview


def canonical(value: Mapping[str, Any]) -> str:
    """JSON text with sorted keys and compact separators; TicketError for what JSON cannot hold.

    The odd bytes of a path that is not UTF-8 are written out with a backslash, as no text has them.
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
        if _SURROGATE.search(text) and not is_text(value):
            return canonical(spelled_out(value))
        return text
    except (TypeError, ValueError, RecursionError) as error:
        raise TicketError(
            f"the manifest cannot be written as JSON ({escape(error)}); "
            "use only null, booleans, finite numbers, strings, lists and dictionaries"
        ) from error


class Source:
    """An open file whose header is sound; ``check`` streams it, ``read_into`` takes a tensor."""

    def __init__(self, path: str | Path, handle: BinaryIO) -> None:
        self._handle = handle
        self.header = _read_header(str(path), handle)

    def check(self) -> dict[str, int]:
        """One pass over all bytes: checksum and mask bits; TicketError if they do not agree.

        Returns the number of set bits by "network.parameter" of every mask. A checkpoint of an
        older version, without a checksum, has nothing to agree with and is not read.
        """
        header, digest, ones = self.header, hashlib.sha256(), {}
        if not header.sha256:
            return {}
        for name in sorted(header.entries):
            entry = header.entries[name]
            digest.update(_checksum_prefix(name, entry.dtype, entry.shape))
            is_mask = header.format == TICKET_FORMAT and name.startswith("mask.")
            bits, last = 0, 0
            for chunk in self._chunks(entry):
                digest.update(chunk)
                if is_mask:
                    bits += int.from_bytes(chunk, "big").bit_count()
                    last = chunk[-1]
            if is_mask:
                key = name.removeprefix("mask.")
                check_mask_bits(header, key, bits, last)
                ones[key] = bits
        self._compare(digest)
        return ones

    def read_checked(self, buffers: Mapping[str, memoryview]) -> None:
        """Tensors of a checkpoint into writable buffers of their sizes, all checked on the way.

        Those without a buffer are only hashed.
        """
        digest = hashlib.sha256()
        for name in sorted(self.header.entries):
            entry = self.header.entries[name]
            if name in buffers:
                self.read_into(name, buffers[name])
            if self.header.sha256:
                digest.update(_checksum_prefix(name, entry.dtype, entry.shape))
                for part in [buffers[name]] if name in buffers else self._chunks(entry):
                    digest.update(part)
        self._compare(digest)

    def _compare(self, digest: hashlib._Hash) -> None:
        """TicketError unless the digest of all tensors, and then the manifest, is the header's."""
        header = self.header
        digest.update(header.manifest_text.encode())
        if header.sha256 and digest.hexdigest() != header.sha256:
            raise unsound(
                header.path,
                f"the checksum does not agree: its bytes give {digest.hexdigest()[:12]}..., the "
                f"header says {header.sha256[:12]}...; the file was damaged or changed",
            )

    def read_into(self, name: str, buffer: memoryview) -> None:
        """The bytes of a tensor into a writable buffer of exactly its size in bytes."""
        entry = self.header.entries[name]
        assert buffer.nbytes == entry.size
        self._handle.seek(entry.begin)
        if entry.size and self._handle.readinto(buffer) != entry.size:  # type: ignore[attr-defined]
            raise unsound(self.header.path, f"tensor {escape(name)}: changed while it was read")

    def _chunks(self, entry: Entry) -> Iterator[bytes]:
        self._handle.seek(entry.begin)
        left = entry.size
        while left:
            chunk = self._handle.read(min(left, CHUNK_BYTES))
            if not chunk:
                raise unsound(
                    self.header.path, f"tensor {escape(entry.name)}: changed while it was read"
                )
            left -= len(chunk)
            yield chunk


@contextlib.contextmanager
def open_file(path: str | Path) -> Iterator[Source]:
    """Open a file of any of Tombola's formats and check its header; TicketError if unsound."""
    text = escape(path, 400)
    try:
        # A pipe or a device would block or never end: ask before opening.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise TicketError(f"{text}: not a regular file; give a .safetensors file")
        handle = open(path, "rb")  # noqa: SIM115
    except FileNotFoundError as error:
        raise TicketError(f"{text}: no such file; give a ticket or model file") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise TicketError(f"{text}: cannot be opened ({escape(reason)})") from error
    with handle:
        yield Source(path, handle)


def read_header(path: str | Path) -> Header:
    """The header of a file, structure checked but neither checksum nor mask bits."""
    with open_file(path) as source:
        return source.header


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The manifest of a file, from its header alone (milliseconds); TicketError if unsound."""
    return read_header(path).manifest


def verify_file(path: str | Path) -> None:
    """Raise TicketError unless format, structure, checksum and masks of a file are sound."""
    with open_file(path) as source:
        source.check()


def write_file(
    path: str | Path,
    tensors: Mapping[str, Raw],
    manifest: Mapping[str, Any],
    *,
    format: str,
    sync: bool = True,
) -> None:
    """Write a file whole or not at all: under another name, synced, then renamed over ``path``.

    ``sync``: as of ``atomic.replacing``. The same input gives the same bytes. TicketError for what
    the format does not allow; OSError (full disk, no permission) as it comes, with nothing left
    behind.
    """
    text = canonical(manifest)
    # The widest values first, as safetensors' own writer does, keep every tensor aligned.
    order = sorted(tensors, key=lambda name: (-ITEM_BYTES[tensors[name].dtype], name))
    head = _header_bytes(tensors, order, text, format, _digest(tensors, text))
    data_bytes = sum(memoryview(tensors[name].data).nbytes for name in order)
    check_contents(_parse_header(str(path), head, 8 + len(head) + data_bytes))
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target, sync=sync) as handle:
        handle.write(len(head).to_bytes(8, "little"))
        handle.write(head)
        for name in order:
            handle.write(tensors[name].data)


def _checksum_prefix(name: str, dtype: str, shape: tuple[int, ...]) -> bytes:
    shape_text = json.dumps(list(shape), separators=(",", ":"))
    return name.encode() + b"\0" + dtype.encode() + b"\0" + shape_text.encode() + b"\0"


def _digest(tensors: Mapping[str, Raw], manifest_text: str) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        raw = tensors[name]
        digest.update(_checksum_prefix(name, raw.dtype, raw.shape))
        digest.update(raw.data)
    digest.update(manifest_text.encode())
    return digest.hexdigest()


def _header_bytes(
    tensors: Mapping[str, Raw], order: list[str], manifest_text: str, format: str, sha256: str
) -> bytes:
    """The JSON header, padded with spaces so that the tensors begin at a multiple of 8."""
    metadata = {"format": format, "manifest": manifest_text, "sha256": sha256}
    tree: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name in order:
        raw = tensors[name]
        size = memoryview(raw.data).nbytes
        assert size == numel(raw.shape) * ITEM_BYTES[raw.dtype], name
        tree[name] = {
            "dtype": raw.dtype,
            "shape": list(raw.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    head = json.dumps(tree, separators=(",", ":")).encode()
    return head + b" " * (-len(head) % 8)


def _read_header(path: str, handle: BinaryIO) -> Header:
    """Length, first bytes and JSON of an open file -> its checked header."""
    file_bytes = os.fstat(handle.fileno()).st_size
    start = handle.read(9)
    length = int.from_bytes(start[:8], "little")
    if len(start) < 9 or length > MAX_HEADER_BYTES or start[8:] != b"{":
        raise _not_safetensors(path, start, length, file_bytes)
    if 8 + length > file_bytes:
        raise unsound(
            path, f"truncated: a header of {length} bytes in a file of {file_bytes} bytes"
        )
    handle.seek(8)
    header = _parse_header(path, handle.read(length), file_bytes)
    check_contents(header)
    return header


def _not_safetensors(path: str, start: bytes, length: int, file_bytes: int) -> TicketError:
    # A sound header may begin with any byte (its length), so this asks only after that failed.
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return unsound(
            path,
            "not a safetensors file: it begins like a zip archive or a pickle (torch.save), which "
            "may run code, so it was never opened",
            "ask its author for a .safetensors file",
        )
    if len(start) < 9:
        return unsound(path, f"truncated: {file_bytes} bytes are too short for a header")
    if start[8:] == b"{" and length > MAX_HEADER_BYTES:
        return unsound(
            path, f"a header of {length} bytes is too long; at most {MAX_HEADER_BYTES} are read"
        )
    return unsound(path, "not a safetensors file", "give a ticket or model file")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the name {escape(twice)} appears twice")
    return tree


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _parse_json(path: str, text: str, what: str) -> dict[str, Any]:
    """A JSON object without duplicate keys, NaN or lone surrogates; TicketError otherwise."""
    if sum(map(text.count, "[{,")) > MAX_HEADER_VALUES:
        raise unsound(path, f"{what} has more than {MAX_HEADER_VALUES} values")
    try:
        tree = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        if _SURROGATE.search(text) and not is_text(tree):
            raise ValueError("it has a lone surrogate")
    except (ValueError, RecursionError) as error:
        raise unsound(path, f"{what} cannot be read as JSON ({escape(error)})") from error
    if not isinstance(tree, dict):
        raise unsound(path, f"{what} is not a JSON object")
    return tree


def _parse_header(path: str, blob: bytes, file_bytes: int) -> Header:
    try:
        tree = _parse_json(path, blob.decode(), "the header")
    except UnicodeDecodeError as error:
        raise unsound(path, f"the header is not UTF-8 ({escape(error)})") from error
    metadata = tree.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise unsound(path, "the header's __metadata__ is not a table of strings")
    format = check_format(path, metadata.get("format"))
    if "manifest" not in metadata:
        raise unsound(path, "the metadata has no manifest")
    manifest = _parse_json(path, metadata["manifest"], "the manifest")
    sha256 = metadata.get("sha256", "")
    required = format != CHECKPOINT_FORMAT or "sha256" in metadata
    if required and not re.fullmatch("[0-9a-f]{64}", sha256):
        raise unsound(path, "the metadata has no sha256 of 64 lower-case hex digits")
    data_start = 8 + len(blob)
    entries = {name: _entry(path, name, value, data_start) for name, value in tree.items()}
    _check_offsets(path, list(entries.values()), data_start, file_bytes)
    return Header(
        path=path,
        format=format,
        manifest=manifest,
        manifest_text=metadata["manifest"],
        sha256=sha256,
        entries=entries,
        file_bytes=file_bytes,
        shapes={} if format == CHECKPOINT_FORMAT else parse_shapes(path, manifest),
    )


def _entry(path: str, name: str, value: object, data_start: int) -> Entry:
    """One entry of the header -> Entry, its byte count equal to shape times dtype."""
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise unsound(path, f"tensor {escape(name)}: its entry is not dtype, shape, data_offsets")
    dtype, offsets = value["dtype"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise unsound(
            path,
            f"tensor {escape(name)}: dtype {escape(dtype)} is not one of {', '.join(ITEM_BYTES)}",
        )
    shape = as_shape(path, name, value["shape"])
    if (
        not isinstance(offsets, list)
        or [type(offset) for offset in offsets] != [int, int]
        or not 0 <= offsets[0] <= offsets[1]
    ):
        raise unsound(path, f"tensor {escape(name)}: offsets {escape(offsets)} are not a range")
    size = offsets[1] - offsets[0]
    if size != numel(shape) * ITEM_BYTES[dtype]:
        raise unsound(
            path,
            f"tensor {escape(name)}: {size} bytes are not {dtype} {escape(list(shape))}",
        )
    return Entry(name, dtype, shape, data_start + offsets[0], data_start + offsets[1])


def _check_offsets(path: str, entries: list[Entry], data_start: int, file_bytes: int) -> None:
    """Tensors lie end to end from the header to the end of the file."""
    position = data_start
    for entry in sorted(entries, key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != position:
            fault = "overlaps the tensor before it" if entry.begin < position else "follows a hole"
            raise unsound(path, f"tensor {escape(entry.name)}: {fault}")
        if entry.end > file_bytes:
            raise unsound(
                path,
                f"truncated: tensor {escape(entry.name)} ends at byte {entry.end} of {file_bytes}",
            )
        position = entry.end
    if position != file_bytes:
        raise unsound(path, f"{file_bytes - position} bytes follow the last tensor")
