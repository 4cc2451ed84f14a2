"""Where runs live: a run is either whole and marked, or not there.

A run is written in ``<hash>.part`` and renamed to ``<hash>`` when its files and, last, its marker
``run.json`` are on disk. What is under way stays in ``.part``, to be taken up by the same run.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tombola.errors import ConfigError

MARKER = "run.json"
LOCK_PATIENCE_SECONDS = 10.0


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that it is either whole or not there; its folder must exist."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def finite(value: Any) -> Any:
    """A JSON value with null for each number that JSON does not have: NaN and the infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return value


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically; null for numbers that are not finite."""
    text = json.dumps(finite(value), indent=1, sort_keys=True, allow_nan=False)
    write_atomic(path, (text + "\n").encode())


def write_log(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write objects as JSON, one a line, atomically; null for numbers that are not finite."""
    text = "".join(json.dumps(finite(line), allow_nan=False) + "\n" for line in lines)
    write_atomic(path, text.encode())


class Store:
    """The runs of one output folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """The folder of a finished run."""
        return self.folder / name

    def has(self, name: str) -> bool:
        """Whether the run is there, whole."""
        return (self.folder / name / MARKER).is_file()

    def finished(self) -> set[str]:
        """Names of all whole runs."""
        if not self.folder.is_dir():
            return set()
        return {entry.name for entry in self.folder.iterdir() if (entry / MARKER).is_file()}

    def record(self, name: str) -> dict[str, Any]:
        """What a finished run wrote about itself."""
        record: dict[str, Any] = json.loads((self.folder / name / MARKER).read_text("utf-8"))
        return record

    def begin(self, name: str) -> Path:
        """The ``.part`` folder of a run, new or as it was left."""
        part = self.folder / f"{name}.part"
        part.mkdir(parents=True, exist_ok=True)
        return part

    def commit(self, name: str, record: Mapping[str, Any]) -> None:
        """Mark the run as whole: the marker is written last, then the folder gets its name."""
        part = self.folder / f"{name}.part"
        write_json(part / MARKER, dict(record))
        final = self.folder / name
        if final.exists():
            shutil.rmtree(final)
        os.replace(part, final)

    def discard_files(self, name: str, pattern: str) -> None:
        """Remove files of a finished run that no later run needs."""
        for path in self.path(name).glob(pattern):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(out: Path) -> Iterator[int]:
    """Hold an output folder for this process and the workers that inherit the descriptor.

    Yields the descriptor. ConfigError that names the holder if another process has it, or if the
    folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(out / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ConfigError(
            f"cannot write to {out}: {error.strerror}; choose another folder with --out"
        ) from error
    try:
        _acquire(descriptor, out)
        holder = json.dumps(
            {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            }
        )
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, holder.encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, out: Path) -> None:
    """Take the lock; wait only for the last workers of a process that is gone."""
    deadline = time.monotonic() + LOCK_PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = _holder(descriptor)
            alive = holder.get("host") != socket.gethostname() or _alive(holder.get("pid"))
            if alive or time.monotonic() > deadline:
                raise ConfigError(
                    f"{out} is in use by process {holder.get('pid', '?')} on "
                    f"{holder.get('host', '?')} since {holder.get('since', '?')}; "
                    "wait for it, stop it, or choose another folder with --out"
                ) from None
            time.sleep(0.1)


def _holder(descriptor: int) -> dict[str, Any]:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0) or b"{}")
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _alive(pid: object) -> bool:
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
