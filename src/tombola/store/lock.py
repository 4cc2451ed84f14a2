"""Who works in an output folder? One process at a time, and the workers that it started."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tombola.config.atomic import alive, clear_litter
from tombola.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PATIENCE_SECONDS = 10.0
FOLDERS = ("store", "tickets", "models", "samples", "logs", "transfer")
"""The folders that a search makes in its own."""
_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}


@contextlib.contextmanager
def locked(out: Path, note: Callable[[str], None] = lambda text: None) -> Iterator[int]:
    """Hold an output folder for this process and the workers that inherit the descriptor.

    Yields the descriptor; what processes that died left half written is gone by then. ``note`` is
    told where the file system has no locks. ConfigError that names the holder if another process
    has it, or if the folder cannot be written.
    """
    if fcntl is None:
        raise ConfigError(
            "a search needs a system with file locks and process groups: Linux or macOS; on "
            "Windows run it in WSL"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(out / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ConfigError(
            f"cannot write to {out}: {error.strerror}; choose another folder with --out"
        ) from error
    try:
        for name in FOLDERS:
            if (out / name).exists() and not (out / name).is_dir():
                raise ConfigError(
                    f"{out / name} is a file, and a search needs a folder of that name; move it "
                    "away, or choose another folder with --out"
                )
        locks = _acquire(descriptor, out, note)
        _write_holder(descriptor, out)
        _clear(out)
        try:
            yield descriptor
        finally:
            if not locks:
                os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, out: Path, note: Callable[[str], None]) -> bool:
    """Take the lock; wait only for the last workers of a process that is gone.

    False where the file system has no locks: then only a holder that wrote its name is heeded.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in {*_NO_LOCKS, errno.EAGAIN, errno.EACCES}:
                raise ConfigError(
                    f"cannot lock {out}: {error.strerror}; choose another folder with --out"
                ) from error
            locks = error.errno not in _NO_LOCKS
            holder = _holder(descriptor)
            gone = holder.get("host") == socket.gethostname() and not _runs(holder)
            if not locks and (gone or not holder):
                note(
                    f"the file system of {out} has no locks ({error.strerror}): start no second "
                    "command on this folder from another machine while this one runs"
                )
                return False
            if not gone or not locks or time.monotonic() > deadline:
                raise ConfigError(_in_use(descriptor, out, holder, gone)) from None
            time.sleep(0.1)


def _in_use(descriptor: int, out: Path, holder: dict[str, Any], gone: bool) -> str:
    """The line that says who has a folder: the holder, or what it started if it is gone."""
    pid, host, since = (holder.get(key, "?") for key in ("pid", "host", "since"))
    who = f"process {pid} on {host} since {since}"
    if gone:
        found = [str(each) for each in _holding(descriptor)]
        them = f"process {', '.join(found)}" if found else "a process that has no name here"
        who = f"{them}, started by process {pid} on {host}, which is gone, since {since}"
    return f"{out} is in use by {who}; wait for it, stop it, or choose another folder with --out"


def _holding(descriptor: int) -> list[int]:
    """The processes that hold the lock of an open file, as far as Linux tells."""
    mine, found = os.fstat(descriptor), []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for link in (place / "fd").iterdir():
                stat = os.stat(link)
                same = (stat.st_dev, stat.st_ino) == (mine.st_dev, mine.st_ino)
                # Who only waits for the lock has the file open too.
                if same and "FLOCK" in (place / "fdinfo" / link.name).read_text():
                    found.append(int(place.name))
                    break
    return sorted(found)


def _write_holder(descriptor: int, out: Path) -> None:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
    except OSError as error:
        error.filename = str(out / ".lock")
        raise


def _holder(descriptor: int) -> dict[str, Any]:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0) or b"{}")
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _runs(holder: dict[str, Any]) -> bool:
    pid = holder.get("pid")
    return isinstance(pid, int) and pid > 0 and alive(pid)


def _clear(out: Path) -> None:
    """Remove what writers that are gone left in a folder of a search: nobody else writes there."""
    clear_litter(out)
    for name in FOLDERS:
        for place, _, _ in os.walk(out / name):
            clear_litter(Path(place))
