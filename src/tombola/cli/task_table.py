"""What the registered tasks are: their networks, and their parameters in both sizes."""

from __future__ import annotations

from typing import Any

import torch

from tombola.config.registry import TASKS

SIZES = ("quick", "paper")
"""The presets that every task has."""


def task_table() -> list[dict[str, Any]]:
    """A row a task: name, networks, and parameters by preset at native size and channels.

    The networks are built on the meta device: nothing is allocated. Native is 28x28 grey for
    linear-ae and 32x32 colour for the others.
    """
    rows = []
    for name in TASKS.names():
        counts, networks = {}, []
        kind = TASKS.load(name)
        for preset in SIZES:
            options = {
                k: v
                for k, v in kind.presets.get(preset, {}).items()
                if k not in ("steps", "epochs")
            }
            task = kind(**options)
            with torch.device("meta"):
                built = task.networks(task.image_shape(3))
            networks = list(built)
            counts[preset] = sum(p.numel() for n in built.values() for p in n.parameters())
        rows.append({"name": name, "networks": networks, "parameters": counts})
    return rows
