"""How a training is kept on disk while it runs, and taken up again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from tombola.errors import TicketError
from tombola.sparsity.tickets import load_tensors, save_tensors
from tombola.training.trainer import Trainer


def save_state(path: Path, trainer: Trainer, extra: dict[str, Any] | None = None) -> None:
    """Write a trainer's whole state, atomically; ``extra`` joins the manifest."""
    tensors, manifest = trainer.state()
    save_tensors(path, tensors, {**manifest, **(extra or {})})


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a state back: tensors by name, and its manifest; TicketError if the file is unsound."""
    return load_tensors(path)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The state that a training which was cut off had saved; None if there is none that is sound.

    The training then begins anew, to the same end.
    """
    try:
        return load_state(path) if path.exists() else None
    except TicketError:
        return None


def save_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Write trained weights and buffers (``network.name`` -> tensor), atomically."""
    save_tensors(path, weights, {})


def load_weights_file(path: Path) -> dict[str, Tensor]:
    """Read what :func:`save_weights` wrote."""
    return load_tensors(path)[0]
