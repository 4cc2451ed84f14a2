"""Which images does a name stand for, in which splits, and in the shape that a task wants?

A source is a function ``NAME(data_dir: Path | None)``. It returns

- images: a uint8 tensor (N, C, H, W), or any sequence or ``torch.utils.data.Dataset`` whose items
  are images (tensor, array or Pillow image) or pairs (image, label); items are decoded once, and
  may be of different sizes;
- or ``(images, labels)``;
- or a ``Raw``, when there is an official test split or the result may be cached.

Register it with ``@tombola.config.registry.DATA.register("my-data")``, or name it on the command
line as ``--data path/to/file.py:NAME``. Nothing else is needed: cropping, colour, scaling, splits
and the data hash are done here.
"""

from __future__ import annotations

import hashlib
import inspect
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tombola.config.registry import DATA, code_sha256, is_file_spec, split_file_spec
from tombola.data import cache, checks
from tombola.data.adapt import Shape
from tombola.data.checks import NATIVE_CHANNELS, check_source
from tombola.data.decode import ImageFiles, ParquetImages
from tombola.data.download import download
from tombola.data.given import checked_images, label_tensor, stack
from tombola.data.layout import read_layout
from tombola.data.pixels import pixels
from tombola.data.splits import SPLITS, Images, Progress, Raw, assemble, data_hash
from tombola.errors import DataError, UserError


def digits(data_dir: Path | None = None) -> Raw:
    """UCI optical digits, 1,797 grey images of 8x8, shipped here (CC BY 4.0, 10.24432/C50P49).

    Values 0..16 become 0..255. Split 1,200/237/360 by the hash of the index, so that every writer
    is in every split (the file lists one writer after the other).
    """
    del data_dir  # shipped inside the package
    with np.load(checks.DIGITS, allow_pickle=False) as file:
        images, labels = file["images"], file["labels"]
    scaled = np.rint(images[:, None].astype(np.float64) * (255 / 16)).astype(np.uint8)
    return Raw(train=torch.from_numpy(scaled), labels=torch.from_numpy(labels), sizes=(237, 360))


def mnist(data_dir: Path | None = None) -> Raw:
    """MNIST from mnist/{train,test}-*.parquet, 28x28 grey, official test split."""
    return _parquet("mnist", data_dir)


def cifar10(data_dir: Path | None = None) -> Raw:
    """CIFAR-10 from cifar10/{train,test}-*.parquet, 32x32 colour, official test split."""
    return _parquet("cifar10", data_dir)


def celeba(data_dir: Path | None = None) -> Raw:
    """CelebA, aligned and cropped (178x218; the centre 178x178 is used), official partition."""
    found = checks.celeba_files(data_dir)
    if found is None or found.train[0].suffix == ".parquet":
        return _parquet("celeba", data_dir, needs_label=False)
    notes = (found.note,) if found.note else ()
    train, test = ImageFiles(found.train), ImageFiles(found.test)
    return Raw(train=train, test=test, files=found.train + found.test, notes=notes)


def folder(path: str) -> Raw:
    """Any tree of images in the order of their relative paths, split 80/10/10.

    Unless it has folders for training and test, and with labels if it has folders for classes: see
    ``layout.read_layout``.
    """
    root = checks.folder_path(path)
    paths, notes = checks.scan_folder(root)
    found = read_layout(root, paths)
    return Raw(
        train=ImageFiles(found.train),
        labels=found.labels,
        test=ImageFiles(found.test) if found.test else None,
        test_labels=found.test_labels,
        files=paths,
        notes=(*notes, *found.notes),
    )


def tensor_file(path: Path) -> Raw:
    """The file that ``save_tensor_source`` wrote, split 80/10/10."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    checks.tensor_header(path)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot read tensor file {path}: {error}; write it again") from error
    raw = Raw(train=tensors["images"], labels=tensors.get("labels"), files=(path.absolute(),))
    return _as_raw(raw, str(path))


def native_channels(spec: str, data_dir: Path | None = None) -> int:
    """1 if a source's images are grey, 3 if they are in colour; decodes a few images at most."""
    check_source(spec, data_dir)
    if spec in NATIVE_CHANNELS:
        return NATIVE_CHANNELS[spec]
    if spec.startswith("tensor:"):
        return int(checks.tensor_header(Path(spec.removeprefix("tensor:")))["shape"][1])
    raw = _open(spec, data_dir)
    grey = True
    # Spread over all, since images of one folder come one after another.
    some = min(16, len(raw.train))
    for index in (len(raw.train) * i // some for i in range(some)):
        try:
            item = raw.train[index]
            image = pixels(item[0] if isinstance(item, tuple | list) else item)
        except Exception:  # a broken image is named when all are loaded
            continue
        grey = grey and bool((image == image[:1]).all())
    return 1 if grey else 3


def load_images(
    spec: str,
    shape: Shape,
    *,
    data_dir: Path | None = None,
    skip_broken: bool = False,
    white: int = 0,
    progress: Progress | None = None,
) -> Images:
    """Load a source in the shape (C, H, W): from the cache, or decoded, adapted and cached.

    ``white``: the value of white in its files, 0 = the largest of their type. ``progress(done,
    all)`` is called while images are decoded. ConfigError for a name that does not exist, DataError
    for missing, broken or too few images.
    """
    name = check_source(spec, data_dir)
    raw = _open(spec, data_dir)
    where = None
    if raw.files:
        origin = f"{spec}\n{_place(spec, data_dir)}\n{skip_broken}\n{white}"
        code = code_sha256(split_file_spec(spec)[0]) if is_file_spec(spec) else ""
        where = cache.slot(name, shape, origin, raw.files, state="\n".join([code, *raw.notes]))
    if where is not None and (stored := _stored(name, where)) is not None:
        return stored
    images = assemble(name, raw, shape, skip_broken, white=white, progress=progress)
    if where is not None:
        labelled = {f"labels.{k}": v for k, v in images.labels.items() if v is not None}
        facts = {"classes": str(images.classes), "sha256": images.sha256, "note": images.note}
        cache.write(where, {**images.splits, **labelled}, facts)
    return images


def _stored(name: str, where: cache.Slot) -> Images | None:
    """The images in a cache, if they are those of their data hash; None otherwise."""
    found = cache.read(where)
    if found is None:
        return None
    tensors, metadata = found
    try:
        images = Images(
            name=name,
            splits={split: tensors[split] for split in SPLITS},
            labels={split: tensors.get(f"labels.{split}") for split in SPLITS},
            classes=int(metadata["classes"]),
            sha256=metadata["sha256"],
            note=metadata["note"],
        )
    except (KeyError, ValueError):
        return None
    return images if data_hash(images.splits, images.labels) == images.sha256 else None


def save_tensor_source(images: Any, path: Path) -> str:
    """Write images given from Python to a file and return its spec, ``tensor:PATH``.

    images: uint8 (N, C, H, W), or (images, labels), or a Dataset or sequence whose items are images
    of one size or pairs (image, label). DataError for anything else. The file is a function of the
    images alone.
    """
    from safetensors.torch import save_file

    raw = _as_raw(images, "images")
    train, labels = raw.train, raw.labels
    if not isinstance(train, Tensor):
        train, own = stack(train)
        labels = own if labels is None else labels
    tensors = {"images": train.detach().cpu().contiguous()}
    numbers = label_tensor(labels, len(train), "images")
    if numbers is not None:
        tensors["labels"] = numbers
    digest = hashlib.sha256(str(tuple(train.shape)).encode())
    for name in sorted(tensors):
        digest.update(tensors[name].numpy().data)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    save_file(tensors, temporary, metadata={"sha256": digest.hexdigest()})
    temporary.replace(path)
    return f"tensor:{path}"


def _parquet(name: str, data_dir: Path | None, needs_label: bool = True) -> Raw:
    found = checks.parquet_files(name, data_dir)
    if found is None:
        download(name, data_dir)
        found = checks.parquet_files(name, data_dir)
        if found is None:
            raise DataError(checks.where_to_put(name, data_dir, "its download was incomplete"))
    train, test = (ParquetImages(paths, needs_label) for paths in (found.train, found.test))
    return Raw(
        train=train,
        labels=lambda: train.labels,
        test=test,
        test_labels=lambda: test.labels,
        files=found.train + found.test,
    )


def _place(spec: str, data_dir: Path | None) -> Path:
    """The absolute path of what a spec refers to, so that it means the same from everywhere."""
    kind, colon, rest = spec.partition(":")
    if colon and kind in ("folder", "tensor"):
        return Path(rest).expanduser().absolute()
    if is_file_spec(spec):
        return split_file_spec(spec)[0].absolute()
    return checks.data_root(data_dir).absolute()


def _open(spec: str, data_dir: Path | None) -> Raw:
    """Call the source that a checked spec names."""
    kind, _, rest = spec.partition(":")
    if kind == "folder":
        return folder(rest)
    if kind == "tensor":
        return tensor_file(Path(rest))
    source = DATA.load(spec)
    if spec in NATIVE_CHANNELS:
        raw: Raw = source(data_dir)
        return raw
    try:
        takes = len(inspect.signature(source).parameters) > 0
        return _as_raw(source(data_dir) if takes else source(), spec)
    except UserError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise DataError(f"data source {spec} failed: {what}; mend it and run again") from error


def _as_raw(given: Any, what: str) -> Raw:
    """A source's answer in its full form, its tensors checked."""
    if isinstance(given, tuple) and len(given) == 2:
        given = Raw(train=given[0], labels=given[1])
    raw = given if isinstance(given, Raw) else Raw(train=given)
    train = checked_images(raw.train, what)
    test = None if raw.test is None else checked_images(raw.test, what)
    return Raw(**{**vars(raw), "train": train, "test": test})
