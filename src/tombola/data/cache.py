"""Have these images been decoded and adapted before? A cache that may always be deleted.

One uncompressed safetensors file per source and shape; reading maps it into memory, so that a
second start is near-instant and processes share the pages. A cache that cannot be read or written
is no error: the images are then decoded again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tombola.data.checks import cache_root

SCHEMA = "tombola.images/2"
"""Part of every key; raise it when decoding or adapting changes what comes out."""


@dataclass(frozen=True)
class Slot:
    """Where the images of one source in one shape are cached."""

    place: str
    """Names the source and shape: a newer state of the same files replaces the older one."""
    key: str
    """Names the state of the source's files."""

    @property
    def path(self) -> Path:
        """The cache file."""
        return cache_root() / "images" / f"{self.place}-{self.key}.safetensors"


def slot(
    name: str, shape: Iterable[int], origin: str, files: Iterable[Path], state: str = ""
) -> Slot | None:
    """The slot for a source's files, identified by path, size and time of change.

    ``origin`` says where the source is and with which options it is read, ``state`` what else may
    change there. None if a file cannot be looked at.
    """
    digest = hashlib.sha256(f"{SCHEMA}\n{origin}\n{state}\n".encode("utf-8", "surrogateescape"))
    for path in files:
        try:
            entry = os.stat(path)
        except OSError:
            return None
        line = f"{path}\0{entry.st_size}\0{entry.st_mtime_ns}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    where = hashlib.sha256(origin.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    size = "x".join(str(side) for side in shape)
    return Slot(place=f"{name}-{size}-{where}", key=digest.hexdigest()[:24])


def read(where: Slot) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """(tensors, metadata) that were stored, mapped into memory; None if there is nothing sound."""
    try:
        with safe_open(where.path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("schema") != SCHEMA or metadata.get("key") != where.key:
                return None
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except (OSError, SafetensorError, json.JSONDecodeError):
        return None


def write(where: Slot, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bool:
    """Store whole or not at all (temporary name, then rename); False if the cache is unusable."""
    path = where.path
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".part-")
        os.close(handle)
        labelled = {**metadata, "schema": SCHEMA, "key": where.key}
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, metadata=labelled)
        os.replace(temporary, path)
        temporary = None
        for other in path.parent.glob(f"{where.place}-*.safetensors"):
            if other != path:
                other.unlink(missing_ok=True)
    except (OSError, SafetensorError):
        return path.exists() and temporary is None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
    return True
