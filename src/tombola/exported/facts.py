"""What does an exported file say about itself, and where does it go? Without importing torch.

A file carries one JSON text, in ONNX as the metadata property ``tombola``, in a .pt2 archive as its
extra file ``tombola.json``: see :class:`Facts` for the keys.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tombola.errors import ConfigError, unknown
from tombola.registry import TASKS
from tombola.sparsity.layout import shown, unsound

FORMAT = "tombola.export/1"
SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2"}
"""What ``--to`` takes -> how a file of that kind ends."""
MAX_TEXT = 2**20
MAX_SIDE = 2**16
"""Heights, widths and lengths of latents beyond this are not believed."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What ``sample`` must know of an exported network."""

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


def parse(path: str | Path, text: str | None) -> Facts:
    """The facts in a file's JSON; TicketError if there are none, or if they cannot be true."""
    todo = "give a file that tombola export wrote, or a model file"
    if text is None or len(text) > MAX_TEXT:
        raise unsound(str(path), "Tombola did not write it: it does not say what it draws", todo)
    try:
        table = json.loads(text)
        if table.pop("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        table["shape"], table["input"] = tuple(table["shape"]), tuple(table["input"])
        facts = Facts(**table)
        _check(facts)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise unsound(
            str(path), f"what it says about itself cannot be read ({shown(error)})", todo
        ) from error
    return facts


def _check(facts: Facts) -> None:
    """ValueError unless every value has its type and a size that can be."""
    texts = (facts.task, facts.role, facts.prior, facts.source_sha256)
    tables = (facts.options, facts.created_with)
    if not all(isinstance(text, str) for text in texts) or facts.prior not in ("normal", "task"):
        raise ValueError("a name is no text")
    if not all(isinstance(table, dict) for table in tables):
        raise ValueError("the options are no table")
    for size in (*facts.shape, *facts.input, facts.latent or 1):
        if type(size) is not int or not 0 < size <= MAX_SIDE:
            raise ValueError(f"a size is {size}")
    if len(facts.shape) != 3 or facts.shape[0] not in (1, 3):
        raise ValueError(f"images are {facts.shape}, not (1 or 3, height, width)")
    if facts.latent and facts.input != (facts.latent,):
        raise ValueError(f"inputs are {facts.input}, not ({facts.latent},)")


def format_of(path: str | Path) -> str | None:
    """``onnx`` or ``torch-export`` by a file's ending; None for other files, such as models."""
    suffix = Path(path).suffix.lower()
    return next((kind for kind, ending in SUFFIXES.items() if ending == suffix), None)


def check_sampling(path: str | Path, facts: Facts, task: str | None) -> None:
    """Refuse what cannot be sampled from, before torch is imported.

    ConfigError for a decoder without a prior, for an unknown task, and for latents that only the
    code of a user's task can draw, if ``task`` does not name it.
    """
    if not facts.latent:
        raise ConfigError(
            f"{shown(path, 400)} is the decoder of an autoencoder, which has no prior to sample "
            "from; give tombola sample the model file: with its encoder it reconstructs images"
        )
    if task is not None or (facts.prior == "task" and facts.task in TASKS.names()):
        TASKS.check(task or facts.task)
    elif facts.prior == "task":
        raise ConfigError(
            f"the latents of {shown(path, 400)} are drawn by its task's own rule, and "
            f"{shown(facts.task)} is not registered; say with --task path/to/file.py:Class"
        )


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
