"""What is in a ticket or model file, for a person and for a program? Without importing torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tombola.config.registry import TASKS
from tombola.errors import TicketError, escape
from tombola.store.container import Source, open_file
from tombola.store.format import CHECKPOINT_FORMAT, ITEM_BYTES, TICKET_FORMAT, complex_names, numel

_SUMMARY = (
    "task", "data", "data_hash", "method", "granularity", "networks", "sparsity_all",
    "rewind_step", "seed", "round", "parents", "scores", "cost", "created_with", "config",
)  # fmt: skip


def describe(path: str | Path) -> dict[str, Any]:
    """The contents of a file as a JSON-ready dictionary, after checking all of it.

    ``sparsity``, ``kept``, ``prunable`` and ``layers`` are counted from the mask bits of a ticket;
    for a model ``layers`` are the tensors of two or more axes and ``kept`` their values that are
    not zero. ``collapsed`` names the layers that keep nothing. Strings are as the file has them:
    escape them where they are shown. TicketError if the file is unsound.
    """
    with open_file(path) as source:
        ones = source.check()
        header = source.header
        if header.format == TICKET_FORMAT:
            kept_by_layer = {key: ones[key] for key in header.shapes if key in ones}
        elif header.format == CHECKPOINT_FORMAT:
            kept_by_layer = {}
        else:
            kept_by_layer = {
                key: _nonzero(source, f"weight.{key}")
                for key, shape in header.shapes.items()
                if len(shape) >= 2 and key not in complex_names(str(path), header.manifest)
            }
    layers = [
        {
            "name": key,
            "shape": list(header.shapes[key]),
            "kept": kept,
            "total": numel(header.shapes[key]),
        }
        for key, kept in kept_by_layer.items()
    ]
    kept, total = (
        sum(kept_by_layer.values()),
        sum(numel(header.shapes[key]) for key in kept_by_layer),
    )
    stored = [entry for name, entry in header.entries.items() if not name.startswith("mask.")]
    return {
        "file": str(path),
        "format": header.format,
        "file_bytes": header.file_bytes,
        "sha256": header.sha256 or None,
        **{key: header.manifest.get(key) for key in _SUMMARY},
        # Of channels the bits say how many are kept, but not how much goes with each.
        "sparsity": header.manifest["sparsity"]
        if header.format == TICKET_FORMAT and header.manifest["granularity"] == "channel"
        else 1 - kept / total
        if total
        else 0.0,
        "kept": kept,
        "prunable": total,
        "tensors": len(stored),
        "values": sum(numel(shape) for shape in header.shapes.values()),
        "stored_values": sum(numel(entry.shape) for entry in stored),
        "layers": layers,
        "collapsed": [key for key, kept in kept_by_layer.items() if kept == 0],
    }


def describe_text(info: dict[str, Any]) -> str:
    """What ``describe`` returns as lines for a terminal; strings from the file are escaped."""
    lines = [
        f"{escape(info['file'], 400)}",
        f"  {info['format']}, {info['file_bytes']:,} bytes, checksum "
        + (f"{info['sha256'][:16]}... agrees" if info["sha256"] else "not recorded"),
    ]
    for key in _SUMMARY:
        value = info[key]
        if key != "config" and value is not None:
            lines += _facts(f"{key.replace('_', ' ')}:", value)
    if info["layers"]:
        of = "prunable weights" if info["format"] == TICKET_FORMAT else "weights in layers"
        of = "channels" if info["granularity"] == "channel" and "prunable" in of else of
        lines.append(
            f"  {'sparsity:':14}{info['sparsity']:.4%} "
            f"({info['kept']:,} of {info['prunable']:,} {of} kept)"
        )
        width = max(len(escape(layer["name"], 60)) for layer in info["layers"])
        lines += ["", f"  {'layer':{width}}  {'kept':>11}  {'total':>11}  {'share':>8}"]
    for layer in info["layers"]:
        name, kept, total = escape(layer["name"], 60), layer["kept"], layer["total"]
        share = f"{kept / total:.2%}" if total else "-"
        gone = "  collapsed" if kept == 0 else ""
        lines.append(f"  {name:{width}}  {kept:>11,}  {total:>11,}  {share:>8}{gone}")
    return "\n".join(lines)


def _facts(head: str, value: Any) -> list[str]:
    """One fact of a manifest: a line, or, of a table such as the scores, a line for each entry."""
    if not isinstance(value, dict):
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        return [f"  {head:14}{escape(text)}"]
    names = {key: escape(key, 60) for key in value}
    width = max(map(len, names.values()), default=0) + 1
    entries = [f"    {names[key] + ':':{width}} {_number(value[key])}" for key in value]
    return [f"  {head}", *entries] if entries else [f"  {head:14}none"]


def _number(value: Any) -> str:
    """A score, a cost or a version in words."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "not known" if value is None else escape(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def _nonzero(source: Source, name: str) -> int:
    """Values of a stored tensor that are not +0.0, by their bits (files hold no -0.0)."""
    entry = source.header.entries[name]
    data = bytearray(entry.size)
    source.read_into(name, memoryview(data))
    return int(np.count_nonzero(np.frombuffer(data, f"u{ITEM_BYTES[entry.dtype]}")))


def registered_task(path: str | Path, manifest: Mapping[str, Any]) -> str:
    """The built-in task that a model file names; TicketError if the caller must say which it is."""
    name = manifest.get("task")
    if not isinstance(name, str) or name not in TASKS.names():
        raise TicketError(
            f"{path} is a model of task {escape(name)}, which is not registered; "
            "say with --task path/to/file.py:Class which code builds it"
        )
    return name
