"""Which judge is at hand, and what may its numbers be called? Answered without importing torch.

A judge is Inception, a classifier that ships with the package, or one trained as a run. A
classifier's file is a safetensors container with one JSON text of what it is (``tombola.judge/1``).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from tombola.config.atomic import write_atomic
from tombola.errors import ConfigError, DataError

INCEPTION_FILE = "inception-2015-12-05.pt"
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
INCEPTION = "inception"
FORMAT = "tombola.judge/1"
MAX_JUDGE_BYTES = 64 * 1024 * 1024
"""ResNet-18 takes 45 MB; a larger file is no judge."""
ACCURACY_GATES = {"digits": 0.95, "mnist": 0.985, "cifar10": 0.80}
"""Smallest accuracy on the judge split with which a classifier may judge."""

_DTYPES = {"float32": "F32", "int64": "I64"}


def cache_dir() -> Path:
    """Where downloaded and derived files live: ``TOMBOLA_CACHE``, else ``~/.cache/tombola``."""
    given = os.environ.get("TOMBOLA_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "tombola"


def find_inception() -> Path | None:
    """The Inception file named by ``TOMBOLA_INCEPTION`` or in the cache, or None.

    ConfigError if the variable names something that is no file. The hash is checked when opened.
    """
    given = os.environ.get("TOMBOLA_INCEPTION")
    if given:
        if not Path(given).is_file():
            raise ConfigError(
                f"TOMBOLA_INCEPTION names {given}, which is no file; "
                f"give the path of {INCEPTION_FILE} or unset it"
            )
        return Path(given)
    cached = cache_dir() / INCEPTION_FILE
    return cached if cached.is_file() else None


def shipped_judge(data: str) -> Path | None:
    """The file of the classifier that ships for a data source, or None."""
    path = Path(__file__).parent / "files" / f"{data}.safetensors"
    return path if path.is_file() else None


def metric_names(judge: str) -> dict[str, str]:
    """Names of a judge's Frechet and kernel distance, that one's error, and class score, by kind.

    ``inception`` gives fid, kid and is; any other judge's name is part of the names, so that
    numbers of two judges never meet in one column.
    """
    if judge == INCEPTION:
        return {"frechet": "fid", "kernel": "kid", "error": "kid-error", "score": "is"}
    return {
        "frechet": f"fcd-{judge}",
        "kernel": f"kcd-{judge}",
        "error": f"kcd-{judge}-error",
        "score": f"cs-{judge}",
    }


def weights_sha256(weights: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 over names and bytes of the tensors in sorted order; the metadata is left out."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + b"\0")
        digest.update(np.ascontiguousarray(weights[name]).tobytes())
    return digest.hexdigest()


def write_judge_file(
    path: Path, weights: Mapping[str, NDArray[Any]], metadata: Mapping[str, Any]
) -> None:
    """Write float32 or int64 tensors and metadata, atomically; equal inputs give equal bytes.

    The header is written here because the library orders metadata at random.
    """
    header: dict[str, Any] = {
        "__metadata__": {"format": FORMAT, "judge": json.dumps(metadata, sort_keys=True)}
    }
    body = b""
    for name in sorted(weights):
        data = np.ascontiguousarray(weights[name]).tobytes()
        header[name] = {
            "dtype": _DTYPES[str(weights[name].dtype)],
            "shape": list(weights[name].shape),
            "data_offsets": [len(body), len(body) + len(data)],
        }
        body += data
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, len(text).to_bytes(8, "little") + text + body)


def read_judge_file(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Tensors and metadata of a judge file; DataError if it is missing, unsound or no judge."""
    try:
        size_bytes = path.stat().st_size
        if size_bytes > MAX_JUDGE_BYTES:
            raise _unsound(path, f"it has {size_bytes} bytes, at most {MAX_JUDGE_BYTES} allowed")
        content = path.read_bytes()  # the library opens no path that is not UTF-8
        weights = dict(sorted(load(content).items()))
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length]).get("__metadata__", {})
        if header.get("format") != FORMAT:
            raise _unsound(path, f"its format is {header.get('format')!r}, not {FORMAT!r}")
        metadata = json.loads(header["judge"])
    except OSError as error:
        raise DataError(
            f"cannot read the judge file {path}: {error.strerror or error}; give an existing file"
        ) from error
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise _unsound(path, str(error).splitlines()[0]) from error
    if not isinstance(metadata, dict):
        raise _unsound(path, "its metadata is no JSON object")
    return weights, metadata


def _unsound(path: Path, why: str) -> DataError:
    return DataError(f"{path} is no sound judge file: {why}; train the judge again")
