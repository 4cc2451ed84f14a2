"""Where runs live: a run is either whole and marked, or not there.

A run is written in ``<hash>.part`` and renamed to ``<hash>`` when its files and, last, its marker
``run.json`` are on disk. What is under way stays in ``.part``, to be taken up by the same run.

The marker names the run's files and carries a digest of itself; tensors carry theirs in their
header, all other files in the marker. A run that is damaged is as good as not there: what its files
and sizes tell is asked of every run, digests are compared where a file is read. Since a run's name
decides its bytes, it is made again and what was built on it stays.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tombola.config.atomic import clear_litter, sync_path, write_atomic
from tombola.errors import ConfigError, DamagedError, DataError, TicketError

MARKER = "run.json"
CHECKPOINT = "checkpoint.safetensors"
FAILED = "failed.json"
PASSING = ("judge-*.safetensors", "state-*.safetensors")
"""Files of a run that go once all that need them are whole, and so are not in its marker."""

_LOST = (errno.ENOENT, errno.EIO)

T = TypeVar("T")


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
        self._faults: dict[str, tuple[tuple[int, ...], str]] = {}
        self._reasons: dict[str, str] = {}

    def path(self, name: str) -> Path:
        """The folder of a finished run."""
        return self.folder / name

    def has(self, name: str) -> bool:
        """Whether the run is there, whole as far as its marker and the sizes of its files tell."""
        return self.path(name).is_dir() and not self.fault(name)

    def finished(self) -> set[str]:
        """Names of all whole runs."""
        return {name for name in self._names() if not self.fault(name)}

    def faults(self) -> dict[str, str]:
        """Runs that are there and damaged -> what is wrong with each."""
        return {name: fault for name in self._names() if (fault := self.fault(name))}

    def _names(self) -> list[str]:
        if not self.folder.is_dir():
            return []
        entries = (entry for entry in self.folder.iterdir() if entry.suffix != ".part")
        return sorted(entry.name for entry in entries if entry.is_dir())

    def fault(self, name: str) -> str:
        """What is wrong with a run that is there, looked at once a marker; empty if nothing."""
        marker = self.path(name) / MARKER
        try:
            stat = marker.stat()
            key = stat.st_ino, stat.st_mtime_ns, stat.st_size
            if self._faults.get(name, ((), ""))[0] != key:
                self._faults[name] = key, self._look(name)
            return self._faults[name][1]
        except (FileNotFoundError, NotADirectoryError):
            return self._reasons.get(name, f"{MARKER} is gone")

    def _look(self, name: str) -> str:
        try:
            files = self.record(name).get("files", {})
        except DamagedError as error:
            return str(error).removeprefix(f"{self.path(name)}{os.sep}")
        for file, entry in files.items():
            path = self.path(name) / file
            size_bytes = path.stat().st_size if path.is_file() else None
            if size_bytes != entry["bytes"]:
                return f"{file} is {'gone' if size_bytes is None else 'cut'}"
        return ""

    def record(self, name: str) -> dict[str, Any]:
        """What a finished run wrote about itself; DamagedError if that does not read."""
        path = self.path(name) / MARKER
        try:
            record = json.loads(path.read_text("utf-8"))
            if not isinstance(record, dict) or not {"kind", "round"} & record.keys():
                raise ValueError("it holds no run")
            seal = record.pop("sha256", None)  # none in a store of an older version
            if seal is not None and seal != _digest(record):
                raise ValueError("the checksum does not agree")
        except (OSError, ValueError, RecursionError) as error:
            if isinstance(error, OSError) and error.errno not in _LOST:
                raise
            raise DamagedError(f"{path} does not read ({error})", name) from error
        return record

    def wrote(self, name: str, file: str) -> bool:
        """Whether a finished run left a file; of an older version: whether it is there."""
        files = self.record(name).get("files")
        return (self.path(name) / file).exists() if files is None else file in files

    def read(self, name: str, file: str, load: Callable[[Path], T]) -> T:
        """What ``load`` makes of a finished run's file; DamagedError if that is not as written."""
        path = self.path(name) / file
        seal = self.record(name).get("files", {}).get(file, {}).get("sha256")
        try:
            if seal is not None and seal != _file_digest(path):
                raise DataError(f"{path}: the checksum does not agree")
            return load(path)
        except (TicketError, DataError, OSError) as error:
            lost = not isinstance(error, OSError) or error.errno in _LOST
            if not lost or (path.exists() and not os.access(path, os.R_OK)):
                raise
            raise DamagedError(f"{path} is damaged or gone", name) from error

    def unmark(self, name: str, why: str) -> None:
        """Make a run as good as not there, for a reason; its files stay until it is made again."""
        self._reasons[name] = why
        (self.path(name) / MARKER).unlink(missing_ok=True)

    def part(self, name: str) -> Path:
        """Where a run is under way."""
        return self.folder / f"{name}.part"

    def begin(self, name: str) -> Path:
        """The ``.part`` folder of a run, new or as it was left."""
        part = self.part(name)
        part.mkdir(parents=True, exist_ok=True)
        clear_litter(part)
        (part / FAILED).unlink(missing_ok=True)
        return part

    def checkpoint(self, name: str) -> tuple[int, int] | None:
        """What tells the checkpoint of a run under way from a newer one; None if it has none."""
        try:
            stat = (self.part(name) / CHECKPOINT).stat()
        except OSError:
            return None
        return stat.st_ino, stat.st_mtime_ns

    def fail(self, name: str, record: Mapping[str, Any]) -> None:
        """Say of a run that it was given up, and why, until it is begun again."""
        self.part(name).mkdir(exist_ok=True)
        write_json(self.part(name) / FAILED, record)

    def commit(self, name: str, record: Mapping[str, Any]) -> None:
        """Mark the run as whole: the marker is written last, then the folder gets its name."""
        part = self.part(name)
        files = sorted(p for p in part.iterdir() if p.is_file() and p.name != MARKER)
        stay = [path for path in files if not any(map(path.match, PASSING))]
        told = {**finite(record), "files": {path.name: _entry(path) for path in stay}}
        told = json.loads(json.dumps(told))  # as it will be read: keys are strings
        write_json(part / MARKER, {**told, "sha256": _digest(told)})
        final = self.path(name)
        if final.exists():
            shutil.rmtree(final)
        os.replace(part, final)
        sync_path(self.folder)

    def discard_files(self, name: str, pattern: str) -> None:
        """Remove files of a finished run that no later run needs."""
        assert pattern in PASSING
        for path in self.path(name).glob(pattern):
            path.unlink(missing_ok=True)


def healed(store: Store, work: Callable[[], T]) -> T:
    """Do what makes the runs that are missing in a store; again where one proves damaged.

    ``work`` says what it makes again (``Store.faults``). ConfigError if a run that was made again
    is damaged once more.
    """
    mended: set[str] = set()
    while True:
        try:
            return work()
        except DamagedError as error:
            if error.run in mended:
                raise ConfigError(
                    f"{error}, though it was made again just now; look after the disk, or choose "
                    "another folder with --out"
                ) from error
            mended.add(error.run)
            store.unmark(error.run, str(error).removeprefix(f"{store.path(error.run)}{os.sep}"))


def _digest(record: Mapping[str, Any]) -> str:
    """SHA-256 of JSON values, however they are laid out."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _entry(path: Path) -> dict[str, Any]:
    """What a marker says of a file: its size, and its digest if its own reader compares none."""
    size = {"bytes": path.stat().st_size}
    if path.suffix == ".safetensors" and path.name != "judge.safetensors":
        return size
    return {**size, "sha256": _file_digest(path)}
