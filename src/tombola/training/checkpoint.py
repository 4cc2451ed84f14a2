"""How a training is kept on disk while it runs, and taken up again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from tombola.sparsity.tickets import load_tensors, save_tensors
from tombola.training.trainer import Trainer


def save_state(path: Path, trainer: Trainer, extra: dict[str, Any] | None = None) -> None:
    """Write a trainer's whole state, atomically; ``extra`` joins the manifest."""
    tensors, manifest = trainer.state()
    save_tensors(path, tensors, {**manifest, **(extra or {})}, checksum=False)


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a state back: tensors by name, and its manifest; TicketError if the file is unsound."""
    return load_tensors(path)


def save_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Write trained weights and buffers (``network.name`` -> tensor), atomically."""
    save_tensors(path, weights, {}, checksum=False)


def load_weights_file(path: Path) -> dict[str, Tensor]:
    """Read what :func:`save_weights` wrote."""
    return load_tensors(path)[0]
