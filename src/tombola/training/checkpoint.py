"""How a training is kept on disk while it runs, and taken up again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from tombola.errors import TicketError
from tombola.store.tensors import load_tensors, save_tensors
from tombola.training.trainer import Trainer, under

WEIGHTS = "network."
"""What the names of the weights and buffers of a state begin with, before ``network.name``."""


def save_state(
    path: Path,
    trainer: Trainer,
    extra: dict[str, Any] | None = None,
    *,
    moments: bool = True,
    sync: bool = True,
) -> None:
    """Write a trainer's state, atomically; ``extra`` joins the manifest.

    ``moments``: whether with what its optimizers know, of which Adam's is twice the weights. Its
    manifest says so where they are left out. ``sync``: as of ``atomic.replacing``.
    """
    tensors, manifest = trainer.state(moments=moments)
    save_tensors(path, tensors, {**manifest, **(extra or {})}, sync=sync)


def load_state(
    path: Path, prefix: str | tuple[str, ...] = ""
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a state back: tensors by name, and its manifest; TicketError if the file is unsound.

    ``prefix``: what the names begin with of the tensors that are wanted.
    """
    return load_tensors(path, prefix)


def load_start(path: Path) -> dict[str, Tensor]:
    """The weights and buffers of a state, ``network.name`` -> tensor, and nothing else of it."""
    return under(load_tensors(path, WEIGHTS)[0], WEIGHTS)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The state that a training which was cut off had saved; None if there is none that is sound.

    The training then begins anew, to the same end.
    """
    try:
        return load_state(path) if path.exists() else None
    except TicketError:
        return None


def save_weights(path: Path, weights: dict[str, Tensor], *, sync: bool = True) -> None:
    """Write trained weights and buffers (``network.name`` -> tensor), atomically.

    ``sync``: as of ``atomic.replacing``.
    """
    save_tensors(path, weights, {}, sync=sync)


def load_weights_file(path: Path) -> dict[str, Tensor]:
    """Read what :func:`save_weights` wrote."""
    return load_tensors(path)[0]
