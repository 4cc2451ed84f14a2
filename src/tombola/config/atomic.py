"""How is a file written so that it is whole or not there, and what did writers that died leave?

A file is written under another name in its folder, synced, renamed over its own name, and the
folder is synced: after a crash or a power cut there is the old file or the new one. The other name
has the writer's process and a random part, and is opened only if nothing is there, so that no link
that somebody planted is followed. Only the standard library is imported here.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISREG
from typing import BinaryIO

_LITTER = re.compile(r"\..+\.(?P<pid>\d+)(?:-[0-9a-f]{8})?\.(?:part|tmp)")
"""Names of files under way; the last two forms are those of older versions."""


@contextlib.contextmanager
def replacing(path: Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """A stream whose bytes become the file at ``path`` when the block ends well; its folder exists.

    ``sync``: whether it lasts through a power cut, which costs a wait for the disk. OSError (full
    disk, no permission) names the file; nothing is left behind then.
    """
    # At most 50 characters of the name, as of 255 bytes a name may have 4 for each.
    part = path.with_name(f".{path.name[:50]}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        with open(part, "xb") as stream:
            yield stream
            stream.flush()
            if sync:
                os.fsync(stream.fileno())
        os.replace(part, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename in (None, part, str(part)):
            error.filename, error.filename2 = str(path), None
        part.unlink(missing_ok=True)
        raise
    if sync:
        sync_path(path.parent)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that it is either whole or not there; its folder must exist.

    One that holds these bytes already is left as it is.
    """
    if _holds(path, data):
        return
    with replacing(path) as stream:
        stream.write(data)


def _holds(path: Path, data: bytes) -> bool:
    try:
        stat = path.lstat()  # a link is replaced, whatever it leads to
        same = S_ISREG(stat.st_mode) and stat.st_size == len(data)
        return same and path.read_bytes() == data
    except OSError:
        return False


def sync_path(path: Path) -> None:
    """Make a file, or the renames in a folder, last through a power cut, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def clear_litter(folder: Path) -> None:
    """Remove from a folder, not from those in it, what writers that are gone left half written."""
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            found = _LITTER.fullmatch(entry.name)
            if found and not alive(int(found["pid"])):
                os.unlink(entry.path)


def alive(pid: int) -> bool:
    """Whether a process of this machine is there; True where that cannot be asked."""
    if os.name == "nt":  # there, signal 0 would be Ctrl-C
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
