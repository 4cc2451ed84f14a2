"""What does an exported file say about itself, and where does it go? Without importing torch.

A file carries one JSON text, in ONNX as the metadata property ``tombola``, in a .pt2 archive as its
extra file ``tombola.json``: see :class:`Facts` for the keys.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tombola.errors import ConfigError, escape, unknown

FORMAT = "tombola.export/1"
SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2"}
"""What ``--to`` takes -> how a file of that kind ends."""
ONNX_KEY = "tombola"
EXTRA_FILE = "tombola.json"
HOW = 'pip install "tombola[onnx]" (in a clone: pip install ".[onnx]")'


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a reader must know of an exported network."""

    task: str
    """The model's own name for its task: one that is registered, or a class of a user's file."""
    role: str
    """generator or decoder."""
    shape: tuple[int, ...]
    """(C, H, W) of the images it makes."""
    latent: int
    """Length of a latent vector; 0 = no prior: a decoder of an autoencoder's codes."""
    input: tuple[int, ...]
    """The shape of one input: (latent,), or a code's."""
    prior: str
    """``normal``: latents are N(0, I); ``task``: the task draws them by a rule of its own."""
    options: dict[str, Any]
    """The task's options, which its own rule may ask for."""
    source_sha256: str
    """SHA-256 of the model file, in hex."""
    created_with: dict[str, str]

    def text(self) -> str:
        """The JSON that goes into the file."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, sort_keys=True)


def refuse_exported(path: str | Path) -> None:
    """ConfigError for a file that is exported by its ending: ``sample`` takes model files only."""
    if Path(path).suffix.lower() in SUFFIXES.values():
        raise ConfigError(
            f"{escape(path, 400)} is an exported network, which other tools run; give tombola "
            "sample the model file that it was exported from (OUT/models/*.safetensors)"
        )


def need(*names: str) -> list[Any]:
    """The modules of the extra ``onnx``; ConfigError that says how to get what is not there."""
    try:
        return [importlib.import_module(name) for name in names]
    except (ImportError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(
            f"ONNX needs {', '.join(names)}, and not all can be imported ({escape(reason)}); "
            f"install them: {HOW}"
        ) from error


def target(path: str | Path, to: str, out: str | Path | None) -> Path:
    """Where the export of a model file goes: ``out``, else beside the model, by the same stem.

    ConfigError for an unknown kind, an ending of another kind, a folder, or a place where nothing
    can be written.
    """
    if to not in SUFFIXES:
        raise unknown("export format", to, SUFFIXES)
    suffix = SUFFIXES[to]
    if out is None:
        place = Path(path).with_suffix(suffix)
    elif not str(out):
        raise ConfigError(f"--out is empty; give a file name that ends in {suffix}")
    else:
        place = Path(out)
    if place.suffix.lower() != suffix:
        raise ConfigError(f"--out {place}: a file for --to {to} ends in {suffix}; name it so")
    if place.is_dir():
        raise ConfigError(f"{place} is a folder; give a file name with --out")
    if place.exists() and place.samefile(path):
        raise ConfigError(f"{place} is the model file itself; name another with --out")
    folder = next(parent for parent in place.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise ConfigError(f"{place}: {folder} is a file; choose another place with --out")
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"cannot write to {folder}; choose another place with --out")
    return place
