"""What do ``tombola run`` and the script that it starts tell each other? Files in a round's folder.

The script's process finds the folder by an environment variable. All is JSON and safetensors, each
file written whole or not at all; nothing in them decides what code runs.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tombola.config.atomic import alive
from tombola.errors import ConfigError
from tombola.store.runs import write_json

VARIABLE = "TOMBOLA_ROUND"
"""Environment variable: the folder of the round that the process is to make."""
ORDER, ANSWER, FAULT = "order.json", "answer.json", "fault.json"
"""What is to be done; what came of it, written last; why nothing can come of it."""
STATE = "state.safetensors"
"""The networks as they were within the last minute."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a round begins with and when it ends."""

    arm: str
    seed: int
    round: int
    start: Literal["own", "ticket", "permuted"]
    """The script's own initial weights; the ticket's; or the own ones permuted in each tensor."""
    prune: tuple[str, ...]
    """Names of the pruned networks, or ``all``."""
    exclude: tuple[str, ...] = ()
    """Layers that are not: first, last, or names ``network.parameter``."""
    rewind_steps: int
    own: str = ""
    """Hash of the weights that the script came with in the dense training of this seed."""
    ends: Mapping[str, str] = field(default_factory=dict)
    """Hash of the weights that a training ended with -> which training."""
    steps: int = 0
    """When the training is stopped; 0 = it ends by itself."""
    driver: int = field(default_factory=os.getpid)
    """Process that waits for the answer."""
    host: str = field(default_factory=socket.gethostname)

    @property
    def name(self) -> str:
        """The round in words."""
        where = "" if self.arm == "dense" else f" of round {self.round}"
        return f"{self.arm}{where}, seed {self.seed}"

    def abandoned(self) -> bool:
        """Whether the process that waits for the answer is gone; False if it is elsewhere."""
        if self.host != socket.gethostname():
            return False
        return not alive(self.driver)


def write_order(part: Path, order: Order) -> None:
    """Put an order into a round's folder."""
    write_json(part / ORDER, dataclasses.asdict(order))


def current() -> tuple[Path, Order] | None:
    """The round that this process is to make; None outside of ``tombola run``.

    ConfigError if the variable names no such folder.
    """
    place = os.environ.get(VARIABLE)
    if not place:
        return None
    part = Path(place)
    try:
        found = json.loads((part / ORDER).read_text("utf-8"))
        return part, Order(**{**found, "prune": tuple(found["prune"])})
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"{VARIABLE} names {place!r}, where no round is to be made ({error}); it is set by "
            "tombola run, unset it elsewhere"
        ) from error


def write_fault(part: Path, text: str) -> None:
    """Say why a round cannot be made; the first reason stays."""
    if not (part / FAULT).exists():
        write_json(part / FAULT, {"fault": text})


def read_told(part: Path, name: str) -> dict[str, Any] | None:
    """An answer or a fault; None if there is none."""
    try:
        found: dict[str, Any] = json.loads((part / name).read_text("utf-8"))
    except FileNotFoundError:
        return None
    return found
