"""Is the data there? Answered in the first second, without torch, pyarrow or Pillow.

This module finds a source's files and reads their headers at most. It also holds the places: where
data sets are looked for and where decoded images are cached.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tombola.config.registry import DATA, is_file_spec, split_file_spec
from tombola.errors import ConfigError, DataError, unknown

_KINDS = "png jpg jpeg bmp gif webp tif tiff ppm pgm pbm pnm"
IMAGE_SUFFIXES = frozenset(f".{kind}" for kind in re.split(" ", _KINDS))
MIN_IMAGES = 20
"""Fewer images than this cannot be split into train, validation and judge."""
MOST_CLASSES = 10_000
"""More kinds of labels than this are ids, which no classifier here is to tell apart."""
NATIVE_CHANNELS = {"digits": 1, "mnist": 1, "cifar10": 3, "celeba": 3}
DIGITS = Path(__file__).parent / "files" / "digits.npz"
_FORMS = ("folder:PATH", "tensor:PATH", "path/to/file.py:NAME")


@dataclass(frozen=True)
class Found:
    """The files of a source with official splits."""

    train: tuple[Path, ...]
    test: tuple[Path, ...]
    note: str = ""


def check_source(spec: str, data_dir: Path | None = None) -> str:
    """Check that a source exists and looks whole; return its short name for directory names.

    Raises ConfigError for a name that does not exist (with the nearest one) and DataError for
    missing, truncated or too few files, saying which file to put where. Decodes nothing.
    """
    if data_dir is not None:
        _check_data_dir(data_dir)
    kind, colon, rest = spec.partition(":")
    if colon and kind == "folder":
        root = folder_path(rest)
        outside: list[Path] = []
        count = sum(1 for _ in _first(walk_folder(root, outside=outside), MIN_IMAGES))
        if count < MIN_IMAGES:
            raise too_few(f"folder {rest}", count, len(outside))
        return "folder-" + _short(root.name)
    if colon and kind == "tensor":
        return "tensor-" + str(tensor_header(Path(rest))["sha256"])[:8]
    if is_file_spec(spec):
        DATA.check(spec)
        path, name = split_file_spec(spec)
        return _short(f"{path.stem}-{name}")
    if spec not in DATA.names():
        if Path(spec).is_dir():
            raise ConfigError(
                f"unknown data source {spec!r}; for the images in that folder give folder:{spec}"
            )
        raise unknown("data source", spec, [*DATA.names(), *_FORMS])
    if spec in HUB_REPOSITORIES:
        _data_set_files(spec, data_dir)
    return _short(spec)


def is_to_be_downloaded(spec: str, data_dir: Path | None = None) -> bool:
    """Whether a source that :func:`check_source` lets pass is not there yet; DataError as there."""
    return spec in HUB_REPOSITORIES and _data_set_files(spec, data_dir) is None


def _data_set_files(name: str, data_dir: Path | None) -> Found | None:
    """The files of a data set in its own layout; None = absent, but they can be downloaded."""
    return celeba_files(data_dir) if name == "celeba" else parquet_files(name, data_dir)


def cache_root() -> Path:
    """Where decoded images are kept: $TOMBOLA_CACHE or ~/.cache/tombola."""
    return Path(os.environ.get("TOMBOLA_CACHE") or os.path.expanduser("~/.cache/tombola"))


def data_root(data_dir: Path | None) -> Path:
    """Where data sets are looked for: --data-dir, else $TOMBOLA_DATA, else the cache's data/.

    DataError if the directory named by the user is not there or is not a directory.
    """
    if data_dir is not None:
        _check_data_dir(data_dir)
        return data_dir
    named = os.environ.get("TOMBOLA_DATA")
    if named:
        _check_data_dir(Path(named), "TOMBOLA_DATA")
        return Path(named)
    return cache_root() / "data"


def parquet_files(name: str, data_dir: Path | None) -> Found | None:
    """The {train,test}-*.parquet files of a data set; None = absent, but they can be downloaded.

    DataError if a file or shard is missing (and huggingface_hub too), or is truncated.
    """
    folder = data_root(data_dir) / name
    try:
        train, test = (_shards(folder, split) for split in ("train", "test"))
    except DataError:
        if can_download():
            return None  # as after a download that was cut off
        raise
    if not train or not test:
        if can_download():
            return None
        raise DataError(
            where_to_put(
                name, data_dir, "huggingface_hub is not installed, so it cannot be downloaded"
            )
        )
    for path in (*train, *test):
        _check_parquet_ends(path)
    return Found(train=train, test=test)


def can_download() -> bool:
    """Whether the library that downloads data sets is installed; it is an optional one."""
    return importlib.util.find_spec("huggingface_hub") is not None


def where_to_put(name: str, data_dir: Path | None, reason: str) -> str:
    """The one line that says which files of a data set to put where."""
    folder = data_root(data_dir) / name
    try:
        lacking = [s for s in ("train", "test") if not _shards(folder, s)] or ["train", "test"]
    except DataError as error:
        return f"{error}, since {reason}"
    files = " and ".join(f"{folder}/{split}-00000-of-00001.parquet" for split in lacking)
    if name == "celeba":
        files = (
            f"{folder}/img_align_celeba/*.jpg with {folder}/list_eval_partition.txt "
            f"(or {folder}/train-*.parquet and test-*.parquet)"
        )
    return (
        f"data set {name} is not in {folder.parent} and {reason}; put there {files}, from "
        f"huggingface.co/datasets/{HUB_REPOSITORIES[name]}, or name another --data-dir, or go "
        "online with huggingface_hub installed"
    )


HUB_REPOSITORIES = {
    "mnist": "ylecun/mnist",
    "cifar10": "uoft-cs/cifar10",
    "celeba": "flwrlabs/celeba",
}


def celeba_files(data_dir: Path | None) -> Found | None:
    """CelebA, aligned and cropped: the images listed as 0 (train) and 2 (test) and present.

    Reads ``list_eval_partition.txt``; images of the official validation split (1) are left out, as
    validation is a tenth of train here. Falls back to the parquet layout. DataError as there.
    """
    folder = data_root(data_dir) / "celeba"
    partition, images = folder / "list_eval_partition.txt", folder / "img_align_celeba"
    if not partition.is_file() and not images.is_dir():
        return parquet_files("celeba", data_dir)
    if not partition.is_file() or not images.is_dir():
        lacking = images if partition.is_file() else partition
        raise DataError(f"celeba: {lacking} is missing; put the official {lacking.name} there")
    present = set(os.listdir(images))
    lists: dict[str, list[Path]] = {"0": [], "1": [], "2": []}
    missing = 0
    for number, line in enumerate(partition.read_text("utf-8", "replace").splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 2 or fields[1] not in lists:
            raise DataError(
                f"{partition}, line {number}: {line[:60]!r} is not 'NAME.jpg 0|1|2'; "
                "take the official file"
            )
        if fields[0] in present:
            lists[fields[1]].append(images / fields[0])
        else:
            missing += 1
    if len(lists["0"]) < 2 or not lists["2"] or len(lists["0"]) + len(lists["2"]) < MIN_IMAGES:
        raise DataError(
            f"{images} holds {len(lists['0'])} train and {len(lists['2'])} test images "
            f"of {partition.name}; at least {MIN_IMAGES}, of both, are needed"
        )
    note = f"{missing} listed images not present" if missing else ""
    return Found(train=tuple(lists["0"]), test=tuple(lists["2"]), note=note)


def folder_path(text: str) -> Path:
    """The PATH of folder:PATH, resolved; DataError if it is not a directory."""
    if not text:
        raise DataError("folder: names no path; give folder:PATH, a directory with images")
    path = Path(os.path.expanduser(text))
    if not path.exists():
        raise DataError(f"folder {text} does not exist; give folder:PATH, a directory with images")
    if not path.is_dir():
        raise DataError(
            f"folder {text} is not a directory; give folder:PATH, a directory with images"
        )
    return path.resolve()


def walk_folder(
    root: Path, others: list[Path] | None = None, outside: list[Path] | None = None
) -> Iterator[Path]:
    """Every image file under a resolved directory, in no order; other files go to ``others``.

    Hidden files count as other files, hidden directories are passed over; links to directories are
    followed, each directory once, but those that lead out of the tree: these go to ``outside``.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"cannot read {error.filename}: {error.strerror}; mend its permissions")

    seen: set[str] = set()
    for place, directories, files in os.walk(root, onerror=refuse, followlinks=True):
        real = os.path.realpath(place)
        inside = Path(real).is_relative_to(root)
        if not inside and outside is not None:
            outside.append(Path(place))
        if real in seen or not inside:
            directories.clear()
            continue
        seen.add(real)
        directories[:] = sorted(d for d in directories if not d.startswith("."))
        for name in files:
            path = Path(place, name)
            if not name.startswith(".") and path.suffix.lower() in IMAGE_SUFFIXES:
                yield path
            elif others is not None:
                others.append(path)


def scan_folder(root: Path) -> tuple[tuple[Path, ...], list[str]]:
    """All images under a directory, sorted by their relative paths, and what was left out.

    DataError if there are fewer than MIN_IMAGES.
    """
    others: list[Path] = []
    outside: list[Path] = []
    found = walk_folder(root, others, outside)
    images = sorted(found, key=lambda path: path.relative_to(root).as_posix())
    if len(images) < MIN_IMAGES:
        raise too_few(f"folder {root}", len(images), len(outside))
    notes = [f"{len(others)} other files skipped"] if others else []
    notes += [f"{len(outside)} links to folders outside of it not followed"] if outside else []
    return tuple(images), notes


def too_few(what: str, count: int, outside: int = 0) -> DataError:
    """The error for a source that is empty or too small to be split.

    ``outside``: how many links to folders elsewhere were not followed.
    """
    found = {0: "no image", 1: "1 image"}.get(count, f"{count} images")
    kinds = " (png, jpg, bmp, gif, webp, tif, pnm)" if what.startswith("folder") else ""
    links = f"; {outside} links to folders outside of it are not followed" if outside else ""
    return DataError(f"{what} holds {found}; at least {MIN_IMAGES} are needed{kinds}{links}")


def tensor_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file with ``images``: {"shape", "sha256", "labels"}.

    DataError if it is missing, truncated or does not hold uint8 images (N, C, H, W).
    """
    wanted = "give a file written by tombola.data.sources.save_tensor_source"
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length < 1 << 20 else None
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise DataError(f"cannot read tensor file {path}: {error.strerror}; {wanted}") from error
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or not isinstance(header.get("images"), dict):
        raise DataError(f"{path} is not a safetensors file with a tensor 'images'; {wanted}")
    images = header["images"]
    shape = images.get("shape")
    whole = isinstance(shape, list) and len(shape) == 4 and all(type(n) is int for n in shape)
    if images.get("dtype") != "U8" or not whole:
        raise DataError(
            f"{path} holds images of type {images.get('dtype')} and shape {shape}; "
            "they must be uint8 (N, C, H, W)"
        )
    try:
        entries = [entry for name, entry in header.items() if name != "__metadata__"]
        end = max(int(entry["data_offsets"][1]) for entry in entries)
        metadata = dict(header.get("__metadata__") or {})
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(f"{path} has a damaged header ({error!r}); {wanted}") from error
    if 8 + length + end != size:
        raise DataError(f"{path} is truncated: {size} bytes, {8 + length + end} expected; {wanted}")
    digest = str(metadata.get("sha256", ""))
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        digest = _stream_sha256(path)
    return {"shape": tuple(shape), "sha256": digest, "labels": "labels" in header}


def _check_data_dir(path: Path, origin: str = "--data-dir") -> None:
    if not path.exists():
        raise DataError(f"data directory {path} does not exist; create it or give another {origin}")
    if not path.is_dir():
        raise DataError(f"data directory {path} is not a directory; give another {origin}")


def _shards(folder: Path, split: str) -> tuple[Path, ...]:
    """The parquet files of a split, sorted; DataError if one of a numbered set is missing."""
    paths = sorted(folder.glob(f"{split}-*.parquet"))
    for path in paths:
        match = re.search(r"-(\d+)-of-(\d+)\.parquet$", path.name)
        if match and len(paths) < int(match[2]):
            present = {p.name for p in paths}
            width = len(match[1])
            names = (f"{split}-{i:0{width}}-of-{match[2]}.parquet" for i in range(int(match[2])))
            lacking = next(name for name in names if name not in present)
            raise DataError(
                f"{folder} holds {len(paths)} of {int(match[2])} {split} files; "
                f"put {lacking} there too"
            )
    return tuple(paths)


def _check_parquet_ends(path: Path) -> None:
    """Both ends of a parquet file carry its magic; a truncated one has lost the last."""
    try:
        with path.open("rb") as file:
            first = file.read(4)
            file.seek(0, os.SEEK_END)
            size = file.tell()
            file.seek(max(0, size - 8))
            last = file.read(8)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; mend or replace it") from error
    footer = int.from_bytes(last[:4], "little")
    if size < 12 or first != b"PAR1" or last[4:] != b"PAR1" or footer > size - 12:
        raise DataError(
            f"{path} is truncated or not a parquet file ({size} bytes); download it again"
        )


def _first(paths: Iterator[Path], count: int) -> Iterator[Path]:
    for _, path in zip(range(count), paths, strict=False):
        yield path


def _short(name: str) -> str:
    """A name that is safe in a directory name: letters, digits, dot, dash and underscore."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.")[:40] or "images"


def _stream_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
