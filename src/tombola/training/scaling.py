"""How do gradients not vanish in fp16? The loss is scaled up, the gradients down again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tombola.config.runtime import Runtime

PREFIX = "scaler."
"""What its scalars are called in a training's state."""


class Scaling:
    """Backward passes and updates of each turn; in fp16 with a scale of its own.

    Micikevicius et al. 2018, "Mixed precision training", section 3.2, with torch's dynamic scale:
    halved, and the update left out, when a gradient is not finite; doubled after 2,000 that are.
    """

    def __init__(self, runtime: Runtime, optimizers: Mapping[str, Optimizer]) -> None:
        self._optimizers = {turn: [optimizer] for turn, optimizer in optimizers.items()}
        scaled = optimizers if runtime.precision == "fp16" else ()
        self._scalers = {turn: torch.amp.GradScaler(runtime.device.type) for turn in scaled}

    def join(self, turn: str, optimizer: Optimizer) -> None:
        """Let another optimizer step together with a turn's own."""
        self._optimizers[turn].append(optimizer)

    def backward(self, turn: str, loss: Tensor) -> None:
        """The gradients of a turn's loss, of its own size whatever the scale."""
        scaler = self._scalers.get(turn)
        if scaler is None:
            loss.backward()  # type: ignore[no-untyped-call]
            return
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        for optimizer in self._optimizers[turn]:
            scaler.unscale_(optimizer)

    def step(self, turn: str) -> None:
        """An update; none where a scaled gradient was not finite."""
        scaler = self._scalers.get(turn)
        for optimizer in self._optimizers[turn]:
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
        if scaler is not None:
            scaler.update()

    def state(self) -> dict[str, Any]:
        """What a later process needs to go on, by ``scaler.<turn>``."""
        return {f"{PREFIX}{turn}": each.state_dict() for turn, each in self._scalers.items()}

    def load(self, scalars: Mapping[str, Any]) -> None:
        """Take up what :meth:`state` gave."""
        for turn, scaler in self._scalers.items():
            scaler.load_state_dict(scalars[f"{PREFIX}{turn}"])
