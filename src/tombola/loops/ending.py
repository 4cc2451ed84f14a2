"""How does a round end? The trained weights, what was measured, images: for ``tombola run``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tombola.config.runtime import state_hash
from tombola.errors import ConfigError
from tombola.loops import averages, orders
from tombola.loops.book import FINAL, GRID, REWIND
from tombola.loops.clock import Clock
from tombola.loops.measured import Measured, judged_by, save_images, surroundings
from tombola.loops.orders import Order
from tombola.sparsity.hold import Hold
from tombola.sparsity.masks import Masks
from tombola.store.runs import write_json
from tombola.training.checkpoint import save_weights
from tombola.training.trainer import named_state


class Training(Protocol):
    """What an ending looks at."""

    networks: dict[str, nn.Module]
    averaged: averages.Averages
    masks: Masks | None

    @property
    def clock(self) -> Clock:
        """Steps, and the states kept on the way."""
        ...


class Ending:
    """What is measured of a training until its end, and the files that it leaves."""

    def __init__(
        self,
        part: Path,
        order: Order,
        *,
        judge: Callable[[], Any] | None,
        sample: Callable[[], Tensor] | None,
    ) -> None:
        self.part, self.order = part, order
        self.judge, self.sample = judge, sample
        self.measured = Measured()
        self.prunable: dict[str, int] = {}
        self.own = ""
        """Hash of the weights that the script came with."""
        self._start = 0.0
        self._rank = int(os.environ.get("RANK", "0"))

    def begin(self) -> None:
        """The training begins now."""
        self._start = time.perf_counter()

    def rank(self) -> int:
        """The rank of this process among those that train together; 0 alone."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # Remembered: the group may be gone when the training is written.
            self._rank = torch.distributed.get_rank()
        return self._rank

    def state(self, training: Training) -> dict[str, Tensor]:
        """``network.name`` -> copy on the CPU: averaged where there is an average, masked."""
        found = {**named_state(training.networks), **training.averaged}
        state = {name: tensor.detach().to("cpu", copy=True) for name, tensor in found.items()}
        Hold(training.networks, training.masks or {}).mask_state(state)
        return state

    def write(self, training: Training) -> None:
        """Write the trained weights, judge, and write the answer last.

        ConfigError if the training ended too early, or for what judge and sample give.
        """
        seconds, clock = time.perf_counter() - self._start, training.clock
        end = state_hash(named_state(training.networks))
        self._check_length(clock)
        if self.rank():
            return
        Hold(training.networks, training.masks or {}).mask_state(training.averaged)
        state = self.state(training)
        bad = [name for name, tensor in state.items() if not bool(tensor.isfinite().all())]
        started = time.perf_counter()
        shape: tuple[int, ...] = ()
        if not bad:
            shape = self._judge(clock.steps)
            if self.order.start == "own":
                assert clock.snapshot is not None
                save_weights(self.part / REWIND, clock.snapshot)
            save_weights(self.part / FINAL, state)
        spent = time.perf_counter() - started
        (self.part / orders.STATE).unlink(missing_ok=True)
        why = f"not finite: {', '.join(bad[:3])}" if bad else self.measured.bad()
        told = {
            "parameters": _sizes(training.networks),
            "prunable": list(self.prunable.items()),
            "round": {
                "arm": self.order.arm,
                "seed": self.order.seed,
                "round": self.order.round,
                "steps": clock.steps,
                "seconds": seconds,
                "eval_seconds": spent if self.judge else None,
                "diverged": clock.steps if why else None,
                "why": why,
                "shape": list(shape),
                "judged": judged_by(clock),
                "own": self.own,
                "end": "" if bad else end,
                "unlike": self.order.own not in ("", self.own),
                "idle": clock.rounds.missing,
                **surroundings(training.networks),
                **self.measured.told(),
            },
            "ended": not bad,
        }
        write_json(self.part / orders.ANSWER, told)

    def _check_length(self, clock: Clock) -> None:
        order = self.order
        taken_up = (
            "; if the script took up a checkpoint of another training, put {dir}, a folder of "
            "each, where its command names the folder of its checkpoints"
            if order.ends
            else ""
        )
        if clock.steps == 0:
            raise ConfigError(
                "no optimizer step of the attached networks was seen; give optimizers= to attach, "
                f"or call apply() of what it returned after each update{taken_up}"
            )
        if order.steps and clock.steps < order.steps:
            raise ConfigError(
                f"the training ended by itself after {clock.steps} steps, but --steps asks for "
                f"{order.steps}; let it run longer, or give fewer --steps{taken_up}"
            )
        if order.start == "own" and clock.snapshot is None:
            raise ConfigError(
                f"the training ended after {clock.steps} steps, before the rewind step "
                f"{order.rewind_steps}; give an earlier --rewind"
            )

    def _judge(self, step: int) -> tuple[int, ...]:
        """Ask the script's own judge and its images; returns (C, H, W) of those, if any."""
        if self.judge is not None:
            found = self.judge()
            if found is not None and not isinstance(found, Mapping):
                raise ConfigError(
                    f"judge gave {type(found).__name__}; let it return a dict of metric to value"
                )
            for metric, value in (found or {}).items():
                self.measured.add(metric, value, None, None, None, step=step)
        if self.sample is None:
            return ()
        with torch.no_grad():
            return save_images(self.part / GRID, self.sample())


def _sizes(networks: Mapping[str, nn.Module]) -> list[tuple[str, int]]:
    return [(name, sum(p.numel() for p in net.parameters())) for name, net in networks.items()]
